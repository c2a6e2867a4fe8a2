"""What `plugins new` writes installs, and its own tests pass; names that are none are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributions import install_folder, run_tests
from tests.live_runs import environment


def _new(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama_scale", "plugins", "new", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder, timeout=60)


@pytest.mark.engines
@pytest.mark.parametrize("kind", ["adapter", "task"])
def test_a_scaffold_passes_its_own_tests(tmp_path: Path, kind: str) -> None:
    made = _new(tmp_path, f"my-{kind}_2", "--kind", kind)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / f"llama-scale-my-{kind}-2"
    assert made.stdout.strip() == folder.name
    site = install_folder(folder, tmp_path / "site")

    done = run_tests(folder, site, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


HOSTILE = [
    "../up",
    "a b",
    "",
    ".",
    "A",
    "1a",
    "a..b",
    "a--b",
    "-a",
    "a/b",
    "a;rm -rf",
    "$(x)",
    "a\n",
    "é",
    "x" * 41,
    "a-",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    done = _new(tmp_path, "--kind", "adapter", "--", name)

    assert done.returncode == 4, done.stderr
    assert "cannot name a plugin" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()

    exists = _new(tmp_path, "fine", "--kind", "task", "--out", "here")
    taken = _new(tmp_path, "lora", "--kind", "adapter")
    nowhere = _new(tmp_path, "fine", "--kind", "task", "--out", "/proc/none/x")

    assert "here exists already; name a new folder with --out" in exists.stderr
    assert "adapter 'lora' is brought by llama-scale already; choose another name" in taken.stderr
    assert "/proc/none/x cannot be written" in nowhere.stderr
    assert exists.returncode == taken.returncode == nowhere.returncode == 4
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
