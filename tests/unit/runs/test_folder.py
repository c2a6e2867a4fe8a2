from __future__ import annotations

import re
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.folder import RunFolder, write_files
from llama_scale.runs.lock import RunLock, is_running
from llama_scale.runs.records import Status, Verdict, load_record

FILES = {"spec.yaml": "version: 1\n", "plan.json": "{}\n", "launch.sh": "exit 0\n"}


def test_create_names_the_folder_and_copies_the_bundle(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "runs", name="my.run", files=FILES)

    assert re.fullmatch(r"my\.run-\d{8}T\d{6}Z-[0-9a-f]{4}", run.name)
    assert {path.name for path in run.path.iterdir()} == {
        "attempts", "bundle", "checkpoints", "logs", "plan.json", "spec.yaml"
    }  # fmt: skip
    assert run.spec.read_text() == (run.bundle / "spec.yaml").read_text() == "version: 1\n"
    assert (run.bundle / "launch.sh").stat().st_mode & 0o111


def test_create_refuses_a_place_that_cannot_be_written_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LaunchError, match=r"cannot create a run folder in .*/file: .*; choose a folder that can be"):
        RunFolder.create(tmp_path / "file", name="x", files=FILES)
    with pytest.raises(LaunchError, match=r"cannot create a run folder in /proc/1"):
        RunFolder.create(Path("/proc/1/runs"), name="x", files=FILES)
    assert (tmp_path / "file").read_text() == "mine"


def test_create_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    bad = FILES | {"no such folder/file": "x"}
    with pytest.raises(LaunchError, match=r"cannot create a run folder"):
        RunFolder.create(tmp_path, name="x", files=bad)
    assert list(tmp_path.iterdir()) == []


def test_replace_bundle_keeps_each_old_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, name="x", files=FILES)

    kept = [run.replace_bundle(FILES | {"spec.yaml": f"version: {n}\n"}).name for n in (2, 3)]

    assert kept == ["bundle-000", "bundle-001"]
    assert run.spec.read_text() == (run.bundle / "spec.yaml").read_text() == "version: 3\n"
    assert (run.path / "bundle-001" / "spec.yaml").read_text() == "version: 2\n"


def test_replace_bundle_that_fails_keeps_the_present_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, name="x", files=FILES)
    with pytest.raises(LaunchError, match=r"cannot write a new bundle into"):
        run.replace_bundle(FILES | {"no such folder/file": "x"})
    assert {path.name for path in run.bundle.iterdir()} == set(FILES)
    assert not (run.path / ".bundle.tmp").exists()


def test_attempts_are_numbered(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, name="x", files=FILES)
    assert [run.next_attempt() for _ in range(3)] == [0, 1, 2]
    assert run.error_file(2, 3) == run.path / "attempts" / "002" / "error-rank-00003.json"


def test_write_files_touches_no_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(FileExistsError):
        write_files(tmp_path, FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_write_atomically_leaves_the_old_text_and_no_rest_on_failure(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "x").touch()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "target", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_records_that_cannot_be_understood_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    assert load_record(path, Verdict) is None
    path.write_text('{"state": "fail')
    assert load_record(path, Verdict) is None
    path.write_text('{"state": "ok", "exit_code": 0, "message": "", "of_a_newer_version": 1}')
    assert load_record(path, Verdict) == Verdict(state="ok", exit_code=0, message="")
    assert load_record(path, Status) is None


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, name="x", files=FILES)
    assert not is_running(run)
    lock = RunLock.acquire(run)
    assert is_running(run)
    with pytest.raises(LaunchError, match=r"is running already, and a run folder has one supervisor"):
        RunLock.acquire(run, patience_s=0)
    lock.release()
    assert not is_running(run)


def test_lock_needs_a_folder_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"a run needs a folder that can be written"):
        RunLock.acquire(RunFolder(tmp_path / "missing"))
