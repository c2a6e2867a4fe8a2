"""When a run counts as hung, and which ranks gave no stack."""

from __future__ import annotations

from pathlib import Path

from llama_scale.runs.hang import HangWatch, silent_ranks
from llama_scale.runs.progress import StepLine
from llama_scale.spec.train import Restart


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(step: int, seconds: float = 2.0) -> StepLine:
    return StepLine(
        step=step, loss=1.0, tokens_per_s=1.0, step_time_s=seconds, validation_loss=None, time_utc=f"{step:03d}"
    )


def watch(clock: Clock, **policy: float | None) -> HangWatch:
    return HangWatch(Restart(**policy), steps=100, clock=clock)  # type: ignore[arg-type]


def test_silence_of_many_median_steps_is_a_hang() -> None:
    clock = Clock()
    watching = watch(clock, hang_factor=10.0, hang_min_s=5.0)
    assert watching.look(None) is None
    for step in range(1, 6):
        clock.now += 2
        assert watching.look(line(step)) is None
    clock.now += 19
    assert watching.look(line(5)) is None
    clock.now += 2
    found = watching.look(line(5))
    assert found == "hung: no step for 21 s after step 5; a step takes 2 s (restart.hang_factor)"


def test_start_of_an_attempt_gets_longer() -> None:
    clock = Clock()
    watching = watch(clock, hang_factor=1.0, hang_min_s=10.0)
    assert watching.look(line(7)) is None  # what an earlier attempt left
    clock.now = 49
    assert watching.look(line(7)) is None
    clock.now = 51
    assert watching.look(line(7)) is not None


def test_last_step_and_null_are_never_a_hang() -> None:
    clock = Clock()
    off, last = watch(clock, hang_factor=None), watch(clock, hang_factor=1.0, hang_min_s=1.0)
    off.look(line(1))
    last.look(line(100))
    clock.now = 1e6
    assert off.look(line(1)) is None
    assert last.look(line(100)) is None


def test_rank_without_a_stack_is_found(tmp_path: Path) -> None:
    (tmp_path / "stacks-node-00000.txt").write_text(
        "== rank 0 (process 7)\nThread 1:\n  File x\n== rank 1 (process 8)\n"
    )
    (tmp_path / "stacks-node-00001.txt").write_text("== rank 2 (process 7)\n\n== rank 3 (process 8)\nThread 1:\n")
    assert silent_ranks(tmp_path) == [1, 2]
    assert silent_ranks(tmp_path / "none") == []
