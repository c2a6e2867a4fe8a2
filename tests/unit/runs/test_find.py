from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.runs.find import find_run, list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.view import NEVER, look
from tests.unit.runs.test_folder import FILES


def _make(root: Path, name: str) -> RunFolder:
    run = RunFolder.create(root, name=name, files=FILES)
    return RunFolder(run.path.rename(root / name))


def test_find_by_path_whole_name_and_beginning(tmp_path: Path) -> None:
    run, _ = _make(tmp_path, "abc"), _make(tmp_path, "abcdef")

    assert find_run(str(run.path), root=Path("nowhere")) == run
    assert find_run("abc", root=tmp_path) == run
    assert find_run("abcd", root=tmp_path).name == "abcdef"


def test_find_refuses_what_is_ambiguous_missing_or_no_run(tmp_path: Path) -> None:
    _make(tmp_path, "abc"), _make(tmp_path, "abd")
    (tmp_path / "other").mkdir()

    with pytest.raises(LaunchError, match=r"'ab' is the beginning of 2 runs in .*: abc, abd; write more"):
        find_run("ab", root=tmp_path)
    with pytest.raises(LaunchError, match=r"no run in .* is called 'x' or begins with it; the newest there: abc, abd"):
        find_run("x", root=tmp_path)
    with pytest.raises(LaunchError, match=r"no run in .* is called ''"):
        find_run("", root=tmp_path)
    with pytest.raises(LaunchError, match=r"it holds no runs; choose another with --runs-dir"):
        find_run("x", root=tmp_path / "other")
    with pytest.raises(LaunchError, match=r"other is no run folder: it has no spec.yaml"):
        find_run(str(tmp_path / "other"), root=tmp_path)


def test_list_ignores_half_made_folders_and_refuses_a_file(tmp_path: Path) -> None:
    run = _make(tmp_path, "abc")
    (tmp_path / ".abd.tmp").mkdir()
    (tmp_path / "file").touch()

    assert list_runs(tmp_path) == [run]
    assert list_runs(tmp_path / "missing") == []
    with pytest.raises(LaunchError, match=r"cannot list the runs in"):
        list_runs(tmp_path / "file")
    assert look(run).state == NEVER
