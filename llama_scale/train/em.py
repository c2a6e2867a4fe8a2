"""Expectation maximisation as training steps: an update that lowers the likelihood of its batch is not accepted.

The E-step and the gradient of the M-step are the model's (``mixture.expected_loss``); here is what makes the steps
those of a generalised EM algorithm (Dempster, Laird, Rubin 1977, section 3): each step's likelihood is measured after
its update, which costs a forward pass, and where it fell, the update is undone and a smaller one is tried. So on fixed
data the likelihood never falls.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from llama_scale.train.engine import Engine, LocalPiece, MicroBatches, StepResult

logger = logging.getLogger(__name__)

ATTEMPTS = ((1.0, True), (1 / 4, True), (1 / 4, False), (1 / 16, False), (1 / 64, False))
"""(factor of the learning rate, whether AdamW's momentum counts) of each try.

Steps of before may point uphill, however small the step; the present gradient alone does not.
"""


class GeneralisedEm:
    """An engine whose updates never lower the likelihood of the batch they are made from.

    Args:
        engine: The engine that trains; everything but ``train_step`` is its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before = Snapshot()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def train_step(self, batch: MicroBatches, lr: float) -> StepResult:
        """Do one E-step and one accepted M-step; see ``Engine.train_step``.

        If no try raises the likelihood, the weights stay, and the momentum is forgotten.
        """
        self._before.take(self._engine)
        for attempt, (factor, momentum) in enumerate(ATTEMPTS):
            if attempt:
                self._before.restore(self._engine, momentum=momentum)
                for chunk in self._engine.chunks:
                    chunk.statistics.clear()  # the step counts once, however often it is tried
            result = self._engine.train_step(batch, lr * factor)
            # Every rank sees the same two numbers. NaN is no improvement.
            if result.skipped or self._engine.evaluate(batch).mean <= result.loss:
                return result
        self._before.restore(self._engine, momentum=False)
        logger.info("no step up to 1/%d of the learning rate raises the likelihood: weights kept", 1 / factor)
        return result


class Snapshot:
    """This rank's part of a training state in memory: a ``TensorReader`` of exactly what the engine asks for again."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, str, Box | None, int | None], torch.Tensor] = {}
        self._step = 0
        self._momentum = True

    @torch.no_grad()
    def take(self, engine: Engine) -> None:
        """Copy the engine's state, into the memory of the last copy where there is one."""
        self._step = engine.step
        self._keep(engine.model_pieces())
        self._keep(engine.optimizer_pieces())

    def _keep(self, pieces: Iterable[LocalPiece]) -> None:
        for piece in pieces:
            key = (piece.group, piece.name, piece.box, piece.flat_start)
            kept = self._tensors.get(key)
            if kept is None:
                self._tensors[key] = piece.tensor.detach().clone(memory_format=torch.contiguous_format)
            else:
                kept.copy_(piece.tensor)

    def restore(self, engine: Engine, *, momentum: bool) -> None:
        """Put the state back; without momentum, AdamW's first moments become zero."""
        self._momentum = momentum
        engine.load(self, optimizer=True, step=self._step)

    def tensors(self, group: str) -> Sequence[str]:
        """See ``TensorReader.tensors``."""
        return list({name: None for kind, name, _, _ in self._tensors if kind == group})

    def read(self, group: str, name: str, box: Box | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """See ``TensorReader.read``; the box is one that this rank holds."""
        found = self._find(group, name, box, None)
        return found if out is None else out.copy_(found)

    def read_range(self, group: str, name: str, box: Box, *, start: int, numel: int) -> torch.Tensor:
        """See ``TensorReader.read_range``; the range is one that this rank holds."""
        return self._find(group, name, box, start)[:numel]

    def _find(self, group: str, name: str, box: Box | None, start: int | None) -> torch.Tensor:
        found = self._tensors.get((group, name, box, start))
        if found is None:
            raise CheckpointError(f"the snapshot holds no {group} of {name}")
        return found if self._momentum or group != "exp_avg" else torch.zeros_like(found)
