from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from llama_scale.train.em import ATTEMPTS, GeneralisedEm, Snapshot
from llama_scale.train.engine import LocalPiece, LossSum, StepResult
from llama_scale.train.statistics import Tally

BOX = Box.whole((1,))


class Valley:
    """An engine of one weight w whose loss is |w|, with a momentum that is the last step."""

    def __init__(self, *, blind: bool = False) -> None:
        self.step = 0
        self.blind = blind
        self.chunks = [SimpleNamespace(statistics=Tally())]
        self.rates: list[float] = []
        self.values = {"model": torch.tensor([1.0]), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}

    @property
    def loss(self) -> float:
        return float(self.values["model"].abs())

    def train_step(self, batch: Any, lr: float) -> StepResult:
        self.rates.append(lr)
        loss = self.loss
        uphill = -self.values["model"].sign() if self.blind else self.values["model"].sign()
        self.values["exp_avg"].mul_(0.5).add_(uphill)
        self.values["model"].sub_(lr * self.values["exp_avg"])
        self.step += 1
        self.chunks[0].statistics.add("task/a", torch.tensor(loss), torch.tensor(1.0))
        return StepResult(loss=loss, grad_norm=1.0, tokens=1, skipped=False)

    def evaluate(self, batch: Any) -> LossSum:
        return LossSum(total=self.loss, tokens=1)

    def model_pieces(self) -> Iterator[LocalPiece]:
        yield self._piece("model")

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        yield self._piece("exp_avg")
        yield self._piece("exp_avg_sq")

    def _piece(self, group: Any) -> LocalPiece:
        return LocalPiece(group=group, name="w", global_shape=(1,), box=BOX, flat_start=None, tensor=self.values[group])

    def load(self, reader: Any, *, optimizer: bool, step: int) -> None:
        assert optimizer and list(reader.tensors("model")) == ["w"]
        for group, tensor in self.values.items():
            tensor.copy_(reader.read(group, "w", BOX))
        self.step = step


def test_step_that_is_too_large_is_undone_and_tried_smaller() -> None:
    engine = Valley()
    em = GeneralisedEm(engine)  # type: ignore[arg-type]

    result = em.train_step([], 4.0)  # 1 -> -3 is worse, 1 -> 0 is good

    assert (result.loss, engine.loss, engine.step) == (1.0, 0.0, 1)
    assert engine.rates == [4.0, 1.0]
    assert engine.chunks[0].statistics["task/a"].tolist() == [1.0, 1.0], "a step counts once, however often it is tried"


def test_momentum_that_points_uphill_is_forgotten() -> None:
    engine = Valley()
    engine.values["exp_avg"].fill_(-1000.0)
    em = GeneralisedEm(engine)  # type: ignore[arg-type]

    em.train_step([], 1.0)

    assert engine.rates == [1.0, 0.25, 0.25] and engine.loss == 0.75
    assert float(engine.values["exp_avg"]) == 1.0
    assert em.loss == engine.loss  # all else is the engine's


def test_weights_stay_where_no_step_is_good(caplog: pytest.LogCaptureFixture) -> None:
    engine = Valley(blind=True)
    em = GeneralisedEm(engine)  # type: ignore[arg-type]

    with caplog.at_level("INFO"):
        em.train_step([], 1.0)

    assert engine.rates == [factor for factor, _ in ATTEMPTS]
    assert (engine.loss, engine.step, float(engine.values["exp_avg"])) == (1.0, 0, 0.0)
    assert "1/64 of the learning rate" in caplog.text


def test_snapshot_keeps_what_it_took_and_knows_nothing_else() -> None:
    engine, snapshot = Valley(), Snapshot()
    snapshot.take(engine)  # type: ignore[arg-type]
    engine.values["model"].fill_(7.0)

    assert float(snapshot.read("model", "w", BOX)) == 1.0
    assert float(snapshot.read("model", "w", BOX, out=torch.zeros(1))) == 1.0
    with pytest.raises(CheckpointError, match="no model of other"):
        snapshot.read("model", "other", BOX)
    with pytest.raises(CheckpointError, match="no exp_avg of w"):
        snapshot.read_range("exp_avg", "w", BOX, start=3, numel=1)
