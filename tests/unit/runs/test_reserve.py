"""The room that a run sets aside for the words about a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from llama_scale.runs.reserve import give_back, set_aside, write_report


class Disk:
    """A write that finds no room until the reserve is gone."""

    def __init__(self, run: Path, code: int = errno.ENOSPC) -> None:
        self.run, self.code, self.calls = run, code, 0

    def __call__(self) -> None:
        self.calls += 1
        if (self.run / "reserve").exists():
            raise OSError(self.code, "no room")


def test_room_is_given_up_for_one_more_try(tmp_path: Path) -> None:
    set_aside(tmp_path)
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 256 << 10
    disk = Disk(tmp_path)
    write_report(tmp_path, disk)
    assert disk.calls == 2 and not (tmp_path / "reserve").exists()


def test_other_errors_and_a_spent_reserve_are_raised(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(OSError, match="no room"):
        write_report(tmp_path, full)
    set_aside(tmp_path)
    with pytest.raises(PermissionError):
        write_report(tmp_path, Disk(tmp_path, errno.EACCES))
    assert (tmp_path / "reserve").exists()
    give_back(tmp_path)
    give_back(tmp_path)
    assert not (tmp_path / "reserve").exists()


def test_folder_that_takes_none_is_left_without(tmp_path: Path) -> None:
    set_aside(tmp_path / "none")
    assert not (tmp_path / "none").exists()
