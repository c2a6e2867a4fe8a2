from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_scale.runs.progress import Follower
from llama_scale.runs.rank_logs import stands_for_itself
from llama_scale.train.log_limit import LogLimit


def test_large_log_is_set_aside_once_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "node-00000.log"
    mine = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    others = os.open(path, os.O_WRONLY | os.O_APPEND)  # another rank of the host
    limit, follower = LogLimit(most_bytes=10, fd=mine), Follower(path)

    os.write(mine, b"short\n")
    limit()
    assert follower.lines() == [b"short"]
    os.write(others, b"and more\n")
    limit()
    assert follower.lines() == []
    os.write(others, b"new\n")
    os.write(mine, b"own\n")

    assert path.read_bytes() == b"new\nown\n"
    assert (tmp_path / "node-00000.log.old").read_bytes() == b"short\nand more\n"
    assert follower.lines() == [b"new", b"own"]
    os.write(mine, b"x" * 20)
    limit()
    assert path.stat().st_size == 0
    assert (tmp_path / "node-00000.log.old").stat().st_size == 28
    os.close(mine)
    os.close(others)


def test_what_is_no_log_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    LogLimit(most_bytes=0, fd=writing)()
    with (tmp_path / "redirected").open("wb") as file:  # `> file` of a shell: no append
        file.write(b"text")
        file.flush()
        LogLimit(most_bytes=0, fd=file.fileno())()
    assert (tmp_path / "redirected").read_bytes() == b"text"
    LogLimit(most_bytes=0, fd=9_999)()
    assert "cannot set the log aside" in capsys.readouterr().err
    os.close(reading)
    os.close(writing)


def test_one_rank_of_a_host_looks_after_a_log_that_all_share() -> None:
    assert stands_for_itself(local_rank=3, world_size=8)
    assert stands_for_itself(local_rank=0, world_size=16_384)
    assert not stands_for_itself(local_rank=3, world_size=16_384)
