from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.report.metrics import read_curves, thin


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_file_that_is_not_there_has_no_curves(tmp_path: Path) -> None:
    curves = read_curves(tmp_path / "metrics.jsonl")

    assert curves.curve("loss") == ()
    assert curves.last("loss") is None
    assert curves.typical("step_time_s") is None
    assert curves.between_steps() == 0.0


def test_what_is_no_record_is_counted_and_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m", {"step": 1, "loss": 2.0}, ["no"], {"loss": 1.0}, {"step": "3"}, {"step": 4, "loss": True}
    )
    with path.open("ab") as file:
        file.write(b"\xff{\n" + b'{"step": 5, "loss"')

    curves = read_curves(path)

    assert (curves.lines, curves.broken) == (6, 4)
    assert curves.values["loss"][0] == (1.0, 2.0)
    assert math.isnan(curves.values["loss"][1][1])


def test_typical_step_leaves_out_the_first(tmp_path: Path) -> None:
    times = [9.0, 1.0, 1.0, 1.2]
    path = write(tmp_path / "m", *({"step": n, "step_time_s": t} for n, t in enumerate(times)))

    assert read_curves(path).typical("step_time_s") == 1.0


def test_time_between_steps_is_what_no_step_took(tmp_path: Path) -> None:
    records = [{"step": n, "step_time_s": 1.0, "time_utc": f"2026-11-24T12:00:{2 * n:02}+00:00"} for n in range(1, 6)]

    assert read_curves(write(tmp_path / "m", *records)).between_steps() == pytest.approx(4.0)


def test_adapters_and_tasks_are_curves_by_name(tmp_path: Path) -> None:
    records = [{"step": n, "responsibilities": {"a": 0.25, "b": None}, "task_losses": {"qa": 2.0}} for n in (1, 2)]

    curves = read_curves(write(tmp_path / "m", *records))

    assert curves.responsibilities["a"] == [(1.0, 0.25), (2.0, 0.25)]
    assert math.isnan(curves.responsibilities["b"][0][1])
    assert curves.task_losses == {"qa": [(1.0, 2.0), (2.0, 2.0)]}


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_mean_of_each_group(values: list[float], most: int) -> None:
    points = [(float(n), value) for n, value in enumerate(values)]

    kept = thin(points, most=most)

    assert len(kept) <= most or len(kept) == len(points) <= most
    assert kept[-1][0] == points[-1][0]
    assert min(values) - 1e-9 <= min(y for _, y in kept) <= max(y for _, y in kept) <= max(values) + 1e-9


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 99)), min_size=2, max_size=60), st.integers(1, 5))
def test_thinning_weighs_losses_by_tokens(steps: list[tuple[float, int]], most: int) -> None:
    points = [(float(n), loss) for n, (loss, _) in enumerate(steps)]
    size = -(-len(steps) // most)

    kept = thin(points, [tokens for _, tokens in steps], most=most)

    for (_, y), start in zip(kept, range(0, len(steps), size), strict=True):
        losses, tokens = zip(*steps[start : start + size], strict=True)
        assert y == pytest.approx(np.average(losses, weights=tokens))


def test_means_over_steps_are_means_over_what_the_steps_counted(tmp_path: Path) -> None:
    records = [
        {"step": 1, "tokens": 3, "responsibilities": {"a": 1.0}, "responsibility_tokens": 1.0},
        {"step": 2, "tokens": 3, "responsibilities": {"a": 0.0}, "responsibility_tokens": 3.0},
        {"step": 3, "tokens": 4, "responsibilities": {"a": 0.5}},  # of 0.1
    ]
    rates = [{"step": n, "tokens_per_s": 90 / s, "step_time_s": s} for n, s in enumerate([1.0, 3.0] * 600)]
    losses = [{"task_losses": {"x": loss}, "task_tokens": {"x": n}} for loss, n in ((1.0, 1), (5.0, 3))] * 600

    assert read_curves(write(tmp_path / "a", *records)).mean_share("a") == pytest.approx((1 * 1 + 3 * 0 + 4 * 0.5) / 8)
    curves = read_curves(write(tmp_path / "b", *(rate | loss for rate, loss in zip(rates, losses, strict=True))))
    assert {y for _, y in curves.curve("tokens_per_s")} == {45.0}  # 180 tokens in 4 s
    assert {y for _, y in curves.task_curve("x")} == {4.0}
