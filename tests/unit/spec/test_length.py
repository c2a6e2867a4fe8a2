"""``train.epochs`` and the steps that it becomes."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.errors import SpecError
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.length import any_length, steps_of_epochs, with_steps
from llama_scale.spec.load import check_text, dump_spec, load_spec
from llama_scale.spec.quick import quick_check
from tests.live_runs import SPEC, write_spec


def epochs_text(epochs: str) -> str:
    return SPEC.replace("train: {steps: 4,", f"train: {{epochs: {epochs},")


@given(st.decimals("0.01", 50, places=2), st.integers(1, 10**6), st.integers(1, 4096))
def test_steps_are_rounded_up_from_the_number_as_it_is_written(epochs: Decimal, rows: int, batch: int) -> None:
    assert steps_of_epochs(float(epochs), rows=rows, global_batch=batch) == math.ceil(epochs * rows / batch)


def test_epochs_are_decimals() -> None:
    assert 1.1 * 50 > 55  # as floats
    assert steps_of_epochs(1.1, rows=50, global_batch=1) == 55


@given(st.integers(1, 9), st.integers(1, 500), st.integers(1, 64), st.integers(1, 64), st.integers(0, 20))
def test_steps_of_a_resumed_run_end_where_the_epochs_do(
    epochs: int, rows: int, before: int, after: int, done: int
) -> None:
    samples = done * before

    steps = steps_of_epochs(epochs, rows=rows, global_batch=after, step=done, samples=samples)

    read = samples + (steps - done) * after
    assert epochs * rows <= read < epochs * rows + after or samples >= epochs * rows
    if before == after:
        assert steps == steps_of_epochs(epochs, rows=rows, global_batch=after) or samples >= epochs * rows


@pytest.mark.parametrize("epochs", ["3", "0.5", "1e3"])
def test_epochs_validate_without_data(epochs: str) -> None:
    loaded = check_text(epochs_text(epochs), name="x", folder="/s")

    assert loaded.spec is not None and (loaded.spec.train.steps, loaded.spec.train.epochs) == (None, float(epochs))
    view = quick_check(epochs_text(epochs))
    assert view is not None and view.train.epochs == float(epochs)


@pytest.mark.parametrize("epochs", ["0", "-1", ".inf", "1e7", "true", "three"])
def test_epochs_are_a_positive_number(epochs: str) -> None:
    problems = check_text(epochs_text(epochs), name="x", folder="/s").problems

    assert problems and all(problem.dotted == "train.epochs" for problem in problems)


def test_a_length_of_set_takes_the_place_of_another(tmp_path: Path) -> None:
    path = write_spec(tmp_path, text=epochs_text("3"))

    assert load_spec(path, overrides=["train.steps=9"]).train.steps == 9
    assert load_spec(path, overrides=["train.tokens=128"]).train.steps == 2
    assert load_spec(path, overrides=["train.steps=null"]).train.epochs == 3
    with pytest.raises(SpecError, match="steps=9 and epochs=1 are both given"):
        load_spec(path, overrides=["train.steps=9", "train.epochs=1"])


def test_a_plan_needs_the_rows_counted(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, text=epochs_text("3")))

    with pytest.raises(
        SpecError, match=r"train\.epochs: the rows of an epoch are not counted yet; `launch` and `plan`"
    ):
        make_plan(spec)
    assert make_plan(any_length(spec)).steps == 1
    assert make_plan(with_steps(spec, 7)).steps == 7


def test_schedule_is_checked_against_the_steps_that_epochs_become(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, text=epochs_text("3") + "schedule: {kind: cosine, warmup_steps: 8}\n"))

    assert with_steps(spec, 8).train.steps == 8
    with pytest.raises(SpecError, match=r"warmup_steps=8 is more than the run's 7 steps; use 0 to 7, or train longer"):
        with_steps(spec, 7)


def test_a_spec_without_epochs_is_written_as_before(tmp_path: Path) -> None:
    assert "epochs:" not in dump_spec(load_spec(write_spec(tmp_path)))
