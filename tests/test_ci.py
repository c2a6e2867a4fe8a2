"""What docs/ci.md gives to users, run as GitHub and pre-commit run it: the workflow's own shell, the hooks' entries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_scale.resources import data_dir
from tests.live_runs import SPEC, environment
from tests.pages import ROOT, blocks

WORKFLOW = data_dir("launch") / "ci" / "github-specs.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
BAD = SPEC.replace("tensor: 2", "tensor: 3")
MISSES = SPEC.replace("{device: cpu, devices_per_node: 4}", "{devices_per_node: 4, profile: dgx-h100}").replace(
    "hidden_size: 32, ffn_hidden_size: 64", "hidden_size: 262144, ffn_hidden_size: 262144"
)
"""Valid, and far too large for its site."""
ODD = "specs/deep, er/a spec:100%.yaml"
_ERROR = re.compile(
    r"^::error file=(?P<file>[^,]+)(,line=(?P<line>\d+),col=\d+)?,title=(?P<title>[^:]+)::(?P<text>.+)$"
)


def call(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    named = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = environment(PATH=path, HOME=str(folder), GIT_CONFIG_NOSYSTEM="1", **named, **variables)
    return subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=120)


class Repository:
    """A git repository of a user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        self.folder.mkdir()
        self.temp = folder / "temp"
        self.temp.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        done = call("git", *words, folder=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, **files: str | None) -> str:
        """Write (or remove) files and commit all; return the commit."""
        for name, text in files.items():
            path = self.folder / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def check(self, base: str) -> tuple[int, list[dict[str, Any]], str]:
        """Run the workflow's step as GitHub does; return its status, its annotations (unescaped) and its output."""
        (step,) = [step for step in yaml.safe_load(WORKFLOW.read_text())["jobs"]["specs"]["steps"] if "env" in step]
        script = self.temp / "step.sh"
        script.write_text(step["run"])
        command = ("bash", "--noprofile", "--norc", "-eo", "pipefail", script)
        variables = {"SPECS": step["env"]["SPECS"], "BASE": base, "RUNNER_TEMP": str(self.temp)}
        done = call(*command, folder=self.folder, **variables)
        found = [match.groupdict() for line in done.stdout.splitlines() if (match := _ERROR.match(line))]
        assert len(found) == sum(line.startswith("::") for line in done.stdout.splitlines()), done.stdout
        for error in found:
            for code, character in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%25", "%")):
                error["file"] = error["file"].replace(code, character)
        return done.returncode, found, done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_only_changed_specs_are_checked(repository: Repository) -> None:
    base = repository.commit(**{"specs/old.yaml": BAD, "specs/gone.yaml": BAD})
    repository.commit(**{"specs/good.yaml": SPEC, "notes.yaml": "no: spec", "specs/gone.yaml": None})

    status, errors, out = repository.check(base)

    assert (status, errors) == (0, [])
    assert "specs/good.yaml: ok" in out
    assert "old" not in out


def test_annotations_name_file_and_line(repository: Repository) -> None:
    base = repository.commit(**{"specs/good.yaml": SPEC})
    repository.commit(**{ODD: BAD, "specs/good.yaml": SPEC + "# changed\n", "configs/broken.yaml": "version: [1\n"})

    status, errors, out = repository.check(base)

    assert status == 3
    assert {error["file"] for error in errors} == {ODD, "configs/broken.yaml"}
    line = next(n for n, text in enumerate(BAD.splitlines(), start=1) if text.startswith("parallel:"))
    odd = [error for error in errors if error["file"] == ODD]
    assert {error["line"] for error in odd} == {str(line)}
    assert any("tensor=3 does not divide num_heads=4" in error["text"] for error in odd)
    assert "specs/good.yaml: ok" in out


def test_plan_that_does_not_fit_its_site_is_annotated(repository: Repository) -> None:
    base = repository.commit()
    repository.commit(**{ODD: MISSES})

    status, errors, _ = repository.check(base)

    assert status == 3
    (error,) = errors
    assert error["file"] == ODD
    assert error["title"] == "launch --dry-run"


def test_no_change_and_no_base(repository: Repository) -> None:
    head = repository.commit(**{"specs/a spec.yaml": SPEC})

    assert repository.check(head) == (0, [], "no spec has changed\n")
    for unknown in ("0" * 40, ""):
        status, _, out = repository.check(unknown)
        assert status == 0
        assert "specs/a spec.yaml: ok" in out


def test_page_shows_the_files_that_are_shipped() -> None:
    page = ROOT / "docs" / "ci.md"
    texts = {block.text for block in blocks(page) if block.language == "yaml"}
    assert WORKFLOW.read_text() in texts
    hooks = {hook["id"] for hook in yaml.safe_load(HOOKS.read_text())}
    (example,) = [yaml.safe_load(text) for text in texts if text.startswith("repos:")]
    assert {hook["id"] for hook in example["repos"][0]["hooks"]} == hooks


def as_local(repository: Repository) -> None:
    """Let pre-commit run the shipped hooks with the llama-scale of this environment: no network in tests."""
    hooks = [hook | {"language": "system"} for hook in yaml.safe_load(HOOKS.read_text())]
    config = {"repos": [{"repo": "local", "hooks": hooks}]}
    (repository.folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))


def test_hooks_run_on_staged_specs_only(repository: Repository) -> None:
    repository.commit(**{"specs/old.yaml": BAD})
    as_local(repository)
    for name, text in (("specs/a good.yaml", SPEC), ("specs/it's bad.yaml", BAD), ("other.yaml", "a: 1")):
        (repository.folder / name).write_text(text)
    command = (sys.executable, "-m", "pre_commit", "run", "--color", "never")

    repository.git("add", "specs/a good.yaml", "other.yaml", ".pre-commit-config.yaml")
    good = call(*command, folder=repository.folder)
    repository.git("add", "specs/it's bad.yaml")
    bad = call(*command, folder=repository.folder)

    assert good.returncode == 0, good.stdout
    assert good.stdout.count("Passed") == 2
    assert bad.returncode == 1
    assert bad.stdout.count("exit code: 3") == 2
    assert re.search(r"specs/it's bad\.yaml:\d+:\d+: parallel\.tensor: tensor=3 does not divide", bad.stdout)
    assert "old.yaml" not in bad.stdout


def test_manifest_of_hooks_is_valid(tmp_path: Path) -> None:
    done = call(sys.executable, "-m", "pre_commit", "validate-manifest", HOOKS, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_names_the_variable_that_takes_the_interpreter(tmp_path: Path) -> None:
    command = ("make", "-C", ROOT, "test-py312", f"VENV_PY312={tmp_path / 'venv'}", f"PYTHON312={tmp_path / 'none'}")
    done = call(*command, folder=tmp_path)

    assert done.returncode != 0
    assert f"Python 3.12 is needed and was not found at PYTHON312={tmp_path / 'none'}" in done.stderr
    assert "Name an interpreter: make test-py312 PYTHON312=/path/to/python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()
