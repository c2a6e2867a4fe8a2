from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llama_scale.errors import LaunchError
from llama_scale.train.metrics import MetricsFile, ProgressLine, StepRecord
from tests.children import in_child


def record(step: int, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "step": step,
        "loss": 2.5,
        "lr": 3e-4,
        "grad_norm": 0.5,
        "tokens": 1000,
        "step_time_s": 0.5,
        "tokens_per_s": 2000.0,
        "mfu": None,
        "samples": 8 * step,
    }
    return StepRecord(**(values | changes))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_one_line_with_the_documented_fields(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, resumed_step=0) as file:
        file.write(record(1))
        assert len(lines(path)) == 1  # already there, not only when the file is closed
        file.write(record(2, mfu=0.4, validation_loss=2.4, validation_losses={"a": 1.0, "b": math.inf}))
        file.write(record(3, task_losses={"a": 2.0}, responsibilities={"x": 0.25, "y": math.nan}))
    first, second, third = lines(path)
    assert first.pop("time_utc").endswith("+00:00")
    assert first == {
        "step": 1,
        "loss": 2.5,
        "lr": 3e-4,
        "grad_norm": 0.5,
        "tokens": 1000,
        "step_time_s": 0.5,
        "tokens_per_s": 2000.0,
        "mfu": None,
        "samples": 8,
        "skipped": False,
        "data_s": 0.0,
    }
    assert (second["mfu"], second["validation_loss"]) == (0.4, 2.4)
    assert second["validation_losses"] == {"a": 1.0, "b": None}
    assert (third["task_losses"], third["responsibilities"]) == ({"a": 2.0}, {"x": 0.25, "y": None})


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m", resumed_step=0) as file:
        file.write(record(1, loss=math.nan, grad_norm=math.inf, skipped=True))
    (line,) = lines(tmp_path / "m")
    assert (line["loss"], line["grad_norm"], line["skipped"]) == (None, None, True)


def test_resuming_drops_later_steps_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with MetricsFile(path, resumed_step=0) as file:
        for step in range(1, 6):
            file.write(record(step))
    with path.open("a") as torn:
        torn.write("[3]\n" + '{"step": 2')
    with MetricsFile(path, resumed_step=3) as file:
        file.write(record(4, loss=1.0))
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(1, 2.5), (2, 2.5), (3, 2.5), (4, 1.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(LaunchError, match=r"cannot write .*/m: Is a directory; check the run folder's permissions"):
        MetricsFile(tmp_path / "m", resumed_step=0)


def test_full_disk_is_named_and_costs_only_the_last_line(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m", resumed_step=0) as file:
        file.write(record(1))

    def write() -> None:
        with (
            MetricsFile(tmp_path / "m", resumed_step=1) as file,
            pytest.raises(LaunchError, match=r"cannot write .*/m: File too large; free space and resume"),
        ):
            file.write(record(2))

    in_child(write, largest_file=(tmp_path / "m").stat().st_size + 9)
    with MetricsFile(tmp_path / "m", resumed_step=1) as file:
        file.write(record(2))
    assert [line["step"] for line in lines(tmp_path / "m")] == [1, 2]


def test_progress_line_says_what_matters() -> None:
    line = ProgressLine(100)
    assert line.text(record(1, step_time_s=30.0)).endswith("2000 tokens/s  ETA 0:49:30")
    # The first step's one-off costs no longer count.
    assert line.text(record(2)) == (
        "step 2/100  loss 2.5000  lr 3.000e-04  grad_norm 0.500  2000 tokens/s  ETA 0:00:49"
    )
    assert line.text(record(3, mfu=0.412)).endswith("MFU 41.2%")
    assert line.text(record(4, skipped=True)).endswith("update skipped: not finite")
    assert "ETA 0:00:00" in line.text(record(100))
