"""The wheel: built, installed without torch into a clean environment, and used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.pages import ROOT

LIGHT = {"typer", "pydantic", "pyyaml", "jinja2", "psutil", "rich"}


def call(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("-q", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    done = call(sys.executable, "-m", "pip", "wheel", *options, ROOT, folder=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a clean environment that holds the wheel and the light dependencies only."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    # The dependencies are those that this environment has: no network in tests. pip's resolver says which they are.
    report = _light_packages(wheel)
    options = ("-q", "--no-deps", "--no-index", "--target", site)
    done = call(sys.executable, "-m", "pip", "install", *options, wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    for source in report:
        (site / source.name).symlink_to(source)
    return folder / "bin"


def _light_packages(wheel: Path) -> list[Path]:
    """Return the installed files of the light dependencies and of what they need, found by their metadata."""
    from importlib.metadata import distribution, requires

    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    declared = [line.split(":", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    waiting = [Requirement(text) for text in declared]
    assert {need.name.lower() for need in waiting if need.marker is None} == LIGHT
    found: dict[str, set[Path]] = {}
    while waiting:
        need = waiting.pop()
        if need.name.lower() in found or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        files = distribution(need.name).files or []
        tops = {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}
        found[need.name.lower()] = {Path(str(distribution(need.name).locate_file(top))) for top in tops}
        waiting += [Requirement(text) for text in requires(need.name) or ()]
    return sorted({path for paths in found.values() for path in paths})


def test_wheel_has_one_top_level_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names} == {"llama_scale", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert "llama_scale/_configs/smoke/pretrain.yaml" in names
    assert "llama_scale/_configs/smoke/sample.jsonl.gz" in names
    assert "llama_scale/_launch/profiles/laptop.yaml" in names
    assert "llama_scale/py.typed" in names
    # Scaffolds of plugins have tests as templates.
    loose = [name for name in names if "/test" in name and not name.endswith(".tmpl")]
    assert not loose
    assert not [name for name in names if name.endswith((".pyc", ".bin", ".idx"))]


def test_light_install_validates_plans_and_renders(installed: Path, tmp_path: Path) -> None:
    find = "from llama_scale.resources import data_dir; print(data_dir('configs'))"
    python = installed / "python"
    configs = call(python, "-c", find, folder=tmp_path).stdout.strip()
    assert configs.endswith("site-packages/llama_scale/_configs")
    spec = f"{configs}/smoke/pretrain.yaml"
    scale = (python, "-m", "llama_scale")

    validated = call(*scale, "validate", spec, folder=tmp_path)
    planned = call(*scale, "plan", spec, "--json", folder=tmp_path)
    rendered = call(*scale, "launch", spec, "--dry-run", "--out", "bundle", folder=tmp_path)
    written = call(*scale, "init", folder=tmp_path)

    for done in (validated, planned, rendered, written):
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "launch.sh").is_file()


def test_light_install_has_no_torch_and_says_so(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    python = installed / "python"

    assert call(python, "-c", "import torch", folder=tmp_path).returncode == 1
    done = call(
        python, "-m", "llama_scale", "tokenizer", "train", "--input", "a.txt", "--vocab-size", "300", "--output", "t",
        folder=tmp_path,
    )  # fmt: skip

    assert done.returncode == 5
    assert "pip install 'llama-scale[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_packages_are_not_installed(installed: Path, tmp_path: Path) -> None:
    for name in ("launch", "configs", "plugins", "tests", "benchmarks"):
        assert call(installed / "python", "-c", f"import {name}", folder=tmp_path).returncode == 1, name
