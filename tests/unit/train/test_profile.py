from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama_scale.errors import LaunchError
from llama_scale.train.profile import StepProfiler, parse_steps


def test_steps_are_first_and_last() -> None:
    assert parse_steps("3:7") == (3, 7)
    assert parse_steps("4:4") == (4, 4)


@pytest.mark.parametrize("text", ["", "3", "3:", ":4", "0:4", "5:4", "a:b", "1:2:3", "-1:2"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(LaunchError, match=r"give the first and the last step to record, e\.g\. --profile 10:12"):
        parse_steps(text)


@pytest.mark.parametrize("steps", [4, 2])
def test_trace_holds_the_steps_also_when_training_ends_early(tmp_path: Path, steps: int) -> None:
    profiler = StepProfiler((2, 3), folder=tmp_path / "profile", rank=1)
    for step in range(1, steps + 1):
        profiler.before(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.after(step)
    profiler.close()
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "rank-00001-steps-2-3.json"
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "aten::mm"]
    assert len(events) == min(steps, 3) - 1


def test_no_steps_record_nothing(tmp_path: Path) -> None:
    profiler = StepProfiler(None, folder=tmp_path / "profile", rank=0)
    profiler.before(1)
    profiler.after(1)
    profiler.close()
    assert not list(tmp_path.iterdir())
