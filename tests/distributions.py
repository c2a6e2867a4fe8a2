"""Distributions that exist for one test: a folder on sys.path with modules and the metadata that pip would write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.live_runs import environment
from tests.pages import ROOT

DESCRIPTOR = '''
from pydantic import Field, field_validator
from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter, PathStr


class Options(AdapterOptions):
    """Options of a test's adapter."""

    size: int = Field(4, ge=1, description="Columns.")
    file: PathStr | None = Field(None, description="A file.")

    @field_validator("size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value == 13:
            raise ValueError("size=13 brings bad luck; use another")
        if value == 14:
            raise RuntimeError("a bug of the plugin")
        return value


def parameters(options, shape, layer):
    if options.size == 5:
        return ()
    return (ExtraParameter(name="w", shape=(options.size, shape.hidden_size), tp_dim=0),)


DESCRIPTOR = AdapterDescriptor(
    name="NAME",
    options=Options,
    parameters=parameters,
    implementation="no_such_module:Class",
    summary="for tests",
    not_mergeable=lambda options: "it is for tests",
)
'''


def install(
    site: Path,
    distribution: str,
    *,
    points: Mapping[str, Mapping[str, str]] | str,
    modules: Mapping[str, str] | None = None,
    version: str = "1.0",
) -> None:
    """Write a distribution into a folder that is on sys.path.

    Args:
        site: The folder.
        distribution: Its name.
        points: Entry points by group, or the text of entry_points.txt.
        modules: Module name -> source.
        version: Its version.
    """
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    if not isinstance(points, str):
        points = "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in named.items())
            for group, named in points.items()
        )
    (info / "entry_points.txt").write_text(points)
    for name, source in (modules or {}).items():
        (site / f"{name}.py").write_text(source)


def install_folder(folder: Path, site: Path) -> Path:
    """Install a distribution's source by pip into a folder, without what it depends on; returns that folder."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return site


def run_tests(folder: Path, site: Path, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an installed distribution's tests from elsewhere, without this project's settings, as a stranger does."""
    env = {**environment(), "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(folder / "tests")]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)
