from __future__ import annotations

from pathlib import Path

from llama_scale.runs.progress import Follower, StepFollower, StepLine, last_step


def _line(step: int, second: int) -> str:
    return f'{{"step": {step}, "loss": 1.5, "time_utc": "2026-01-01T00:00:{second:02d}"}}\n'


def test_last_step_reads_the_last_complete_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    path.write_text("".join(_line(n, 0) for n in range(1, 400)) + '{"step": 400, "lo')
    line = last_step(path)
    assert line is not None and (line.step, line.loss, line.tokens_per_s) == (399, 1.5, None)


def test_parse_takes_no_rubbish() -> None:
    assert StepLine.parse(b"{") is None
    assert StepLine.parse(b"[1]") is None
    assert StepLine.parse(b'{"step": "x"}') is None
    found = StepLine.parse(b'{"step": 1, "loss": null}')
    assert found is not None and found.loss is None


def test_follower_returns_complete_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = Follower(path)
    assert follower.lines() == []
    path.write_bytes(b"one\ntw")
    assert follower.lines() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    assert follower.lines() == [b"two"]
    assert Follower(path, from_end=True).lines() == []


def test_step_follower_shows_only_new_steps_of_a_file_cut_by_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1, 1) + _line(2, 2) + _line(3, 3))
    follower = StepFollower(path)
    assert follower.steps() == []

    replacement = tmp_path / "new"
    replacement.write_text(_line(1, 1) + _line(2, 2) + _line(3, 9))
    replacement.replace(path)

    assert [line.step for line in follower.steps()] == [3]
    with path.open("a") as file:
        file.write(_line(4, 10))
    assert [line.step for line in follower.steps()] == [4]
