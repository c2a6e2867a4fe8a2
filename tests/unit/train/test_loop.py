from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llama_scale.checkpoint.manifest import list_complete
from llama_scale.layout.boxes import Box
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.run import RunSpec
from llama_scale.train.checkpointing import Checkpointer, Position
from llama_scale.train.engine import LocalPiece, LossSum, MicroBatches, StepResult, TensorReader
from llama_scale.train.loop import LoopParts, NonFiniteError, best_validation_loss, log_progress, train
from llama_scale.train.metrics import StepRecord
from llama_scale.train.profile import StepProfiler
from llama_scale.train.statistics import StepStatistics
from llama_scale.train.validation import Validation
from tests.unit.train.test_metrics import record

ROWS = 8


class OneWeight:
    """An engine of one weight, whose losses a test lists; it satisfies ``train.engine.Engine``."""

    def __init__(self, losses: list[float] | None = None) -> None:
        self.chunks: list[nn.Module] = []
        self.step = 0
        self.rates: list[float] = []
        self.losses = losses or []

    def train_step(self, batch: MicroBatches, lr: float) -> StepResult:
        self.rates.append(lr)
        place = len(self.rates) - 1
        loss = self.losses[place] if place < len(self.losses) else 1.0
        skipped = not math.isfinite(loss)
        self.step += not skipped
        return StepResult(loss=loss, grad_norm=1.0, tokens=64, skipped=skipped)

    def evaluate(self, batch: MicroBatches) -> LossSum:
        return LossSum(total=1.0, tokens=1)

    def model_pieces(self) -> Iterator[LocalPiece]:
        box = Box.whole((1,))
        yield LocalPiece(
            group="model",
            name="w",
            global_shape=(1,),
            box=box,
            flat_start=None,
            tensor=torch.tensor([float(self.step)]),
        )

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        yield from ()

    def load(self, reader: TensorReader, *, optimizer: bool, step: int = 0) -> None:
        self.step = step

    def close(self) -> None:
        self.chunks = []


def make_spec(**sections: Any) -> RunSpec:
    model = {"hidden_size": 8, "ffn_hidden_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
    values: dict[str, Any] = {
        "version": 1,
        "name": "loop",
        "model": {"kind": "inline", **model, "vocab_size": 16, "max_position_embeddings": 16},
        "data": {"kind": "indexed", "blend": ({"path": "/none"},), "seq_length": 16},
        "train": {"steps": 6},
        "batch": {"global": 4, "micro": 4, "accumulation": 1},
        "engine": {"kind": "megatron"},
        "precision": {"compute": "fp32"},
        "checkpoint": {"asynchronous": False, "keep_last": 99},
        "cluster": {"device": "cpu"},
    }
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes
    return RunSpec.model_validate(values)


class Loop:
    """A run of the loop with everything it did."""

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        *,
        losses: list[float] | None = None,
        validate: Callable[[], float] | None = None,
        statistics: Callable[[], StepStatistics] | None = None,
        stop_after: int | None = None,
        start: Position | None = None,
    ) -> None:
        self.engine = OneWeight(losses)
        self.records: list[StepRecord] = []
        self.firsts: list[int] = []
        plan = make_plan(spec)
        parts = LoopParts(
            engine=self.engine,
            checkpointer=Checkpointer(folder / "checkpoints", spec=spec, plan=plan),
            train_batch=lambda first: self.firsts.append(first) or [],  # type: ignore[func-returns-value]
            validate=None
            if validate is None
            else lambda: Validation(loss=validate(), rows=ROWS, task_losses={"a": 1.0}),
            stop_wish=lambda: stop_after is not None and len(self.records) >= stop_after,
            agree=lambda wish: wish,
            sinks=[self.records.append],
            profiler=StepProfiler(None, folder=folder, rank=0),
            flops_per_step=1e6,
            peak_flops=None,
            statistics=statistics,
        )
        self.outcome = train(spec, plan, parts, position=start or Position(step=0, samples=0))
        self.saved = [int(path.name.removeprefix("step-")) for path in list_complete(folder / "checkpoints")]


def test_statistics_are_gathered_after_each_step_and_each_evaluation(tmp_path: Path) -> None:
    found = iter(
        [
            StepStatistics(task_losses={"a": 2.0}),
            StepStatistics(task_losses={"a": 1.5}),
            StepStatistics(responsibilities={"x": 0.75, "y": 0.25}),  # of the evaluation after step 2
            StepStatistics(responsibilities={"x": 0.5, "y": 0.5}),
            StepStatistics(),
            StepStatistics(responsibilities={"x": 1.0, "y": 0.0}),  # training's own go before the evaluation's
        ]
    )
    spec = make_spec(train={"steps": 4}, validation={"every_steps": 2, "batches": 1})

    loop = Loop(tmp_path, spec, validate=lambda: 1.0, statistics=lambda: next(found))

    assert [r.task_losses for r in loop.records] == [{"a": 2.0}, {"a": 1.5}, {}, {}]
    assert [r.responsibilities for r in loop.records] == [
        {},
        {"x": 0.75, "y": 0.25},
        {"x": 0.5, "y": 0.5},
        {"x": 1.0, "y": 0.0},
    ]
    assert next(found, None) is None


def manifest(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return found


def test_every_step_has_its_rate_its_samples_and_its_record(tmp_path: Path) -> None:
    loop = Loop(
        tmp_path, make_spec(schedule={"kind": "constant", "warmup_steps": 3}, optimizer={"kind": "adamw", "lr": 0.3})
    )
    assert loop.outcome == "done"
    assert loop.engine.rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3, 0.3])
    assert loop.firsts == [0, 4, 8, 12, 16, 20]
    assert [(r.step, r.samples) for r in loop.records] == [(n, 4 * n) for n in range(1, 7)]
    assert [r.lr for r in loop.records] == loop.engine.rates
    assert loop.saved == [6]  # the last step always saves


def test_periodic_saves_hold_step_and_data_position(tmp_path: Path) -> None:
    loop = Loop(tmp_path, make_spec(checkpoint={"every_steps": 2}))
    assert loop.saved == [2, 4, 6]
    assert (manifest(tmp_path, 4)["step"], manifest(tmp_path, 4)["samples"]) == (4, 16)


def test_loop_goes_on_from_a_position(tmp_path: Path) -> None:
    loop = Loop(tmp_path, make_spec(), start=Position(step=4, samples=100))
    assert loop.firsts == [100, 104]
    assert [r.step for r in loop.records] == [5, 6]


def test_finished_run_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        loop = Loop(tmp_path, make_spec(), start=Position(step=6, samples=24))
    assert (loop.outcome, loop.firsts, loop.saved) == ("done", [], [])
    assert "nothing to do: step 6 is done already and the run has 6" in caplog.text


def test_stop_saves_at_the_next_step_boundary(tmp_path: Path) -> None:
    loop = Loop(tmp_path, make_spec(checkpoint={"every_steps": 2}), stop_after=3)
    assert loop.outcome == "preempted"
    assert loop.saved == [2, 3]


def test_stop_at_the_last_step_is_done(tmp_path: Path) -> None:
    assert Loop(tmp_path, make_spec(), stop_after=6).outcome == "done"


def test_best_validation_loss_is_saved_and_remembered(tmp_path: Path) -> None:
    values = iter([3.0, 2.0, 2.5])
    spec = make_spec(validation={"every_steps": 2, "batches": 1}, checkpoint={"keep_best": True})
    loop = Loop(tmp_path, spec, validate=lambda: next(values))
    assert [r.validation_loss for r in loop.records] == [None, 3.0, None, 2.0, None, 2.5]
    assert [r.validation_losses for r in loop.records[:2]] == [{}, {"a": 1.0}]
    assert loop.saved == [2, 4, 6]
    assert manifest(tmp_path, 4)["metrics"] == {
        "validation_loss": 2.0,
        "validation_rows": 8,
        "best_validation_loss": 2.0,
    }
    assert manifest(tmp_path, 6)["metrics"] == {
        "validation_loss": 2.5,
        "validation_rows": 8,
        "best_validation_loss": 2.0,
    }


def test_resumed_run_does_not_take_a_worse_loss_for_the_best(tmp_path: Path) -> None:
    spec = make_spec(validation={"every_steps": 5, "batches": 1}, checkpoint={"keep_best": True})
    start = Position(step=4, samples=16, metrics={"best_validation_loss": 1.5, "validation_rows": 8})
    assert best_validation_loss(start) == 1.5
    assert Loop(tmp_path, spec, validate=lambda: 2.0, start=start).saved == [6]


@pytest.mark.parametrize("rows", [{}, {"validation_rows": 4}], ids=["of 0.1", "fewer rows"])
def test_best_loss_over_other_rows_is_not_compared(tmp_path: Path, rows: dict[str, float]) -> None:
    spec = make_spec(validation={"every_steps": 5, "batches": 1}, checkpoint={"keep_best": True})
    start = Position(step=4, samples=16, metrics={"best_validation_loss": 1.5, **rows})

    assert Loop(tmp_path, spec, validate=lambda: 2.0, start=start).saved == [5, 6]
    assert manifest(tmp_path, 6)["metrics"]["best_validation_loss"] == 2.0


def test_validation_loss_that_is_not_finite_is_not_the_best(tmp_path: Path) -> None:
    spec = make_spec(validation={"every_steps": 2, "batches": 1}, checkpoint={"keep_best": True})
    assert Loop(tmp_path, spec, validate=lambda: math.nan).saved == [6]


def test_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"step 3: loss=nan, grad_norm=1\.0 is not finite; training stopped before"
    ):
        Loop(tmp_path, make_spec(), losses=[1.0, 1.0, math.nan])


def test_skipped_steps_are_counted_in_a_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = math.nan
    spec = make_spec(train={"on_nan": "skip", "max_skipped": 2})
    loop = Loop(tmp_path, spec, losses=[bad, bad, 1.0, math.inf, bad, 1.0])
    assert [r.skipped for r in loop.records] == [True, True, False, True, True, False]
    assert "4 updates were skipped because they were not finite" in caplog.text
    assert (manifest(tmp_path, 6)["step"], manifest(tmp_path, 6)["optimizer_step"]) == (6, 2)
    with pytest.raises(NonFiniteError, match=r"3 skipped steps in a row, train\.max_skipped=2 allows no more"):
        Loop(tmp_path / "more", spec, losses=[1.0, bad, bad, bad])


def test_progress_is_logged_at_its_interval_and_where_it_matters(caplog: pytest.LogCaptureFixture) -> None:
    sink = log_progress(steps=10, every=4)
    with caplog.at_level(logging.INFO):
        for step in range(1, 11):
            sink(record(step, skipped=step == 6, validation_loss=2.0 if step == 7 else None))
    heads = [message.split("  ")[0] for message in caplog.messages]
    assert heads == ["step 1/10", "step 4/10", "step 6/10", "step 7/10", "step 8/10", "step 10/10"]
    assert caplog.messages[3] == "step 7/10  validation loss 2.0000  perplexity 7.39"


def test_validation_of_several_tasks_names_each_and_no_perplexity(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_progress(steps=10, every=100)(record(5, validation_loss=2.0, validation_losses={"a": 1.0, "b": 3.0}))
    assert caplog.messages == ["step 5/10  validation loss 2.0000  a 1.0000  b 3.0000"]
