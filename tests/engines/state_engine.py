"""An engine without a model: every rank's true share of a LLaMA's state, with values that say what they should be.

Checkpoint tests use it where training adds nothing: layouts, faults, kills. Value of an element = f(group, name,
index in the logical tensor, step), so a wrong, stale or shifted element is seen at once.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter, iter_parameters, local_box
from llama_scale.train.engine import LocalPiece
from tests.engines.specs import Case

MOMENTS = ("exp_avg", "exp_avg_sq")


@functools.cache
def _base(group: str, parameter: Parameter) -> torch.Tensor:
    phase = zlib.crc32(f"{group}/{parameter.name}".encode())
    return ((torch.arange(parameter.numel) * 40503 + phase) % 65521).float().view(parameter.shape)


def logical_value(group: str, parameter: Parameter, step: int) -> torch.Tensor:
    """Return the whole logical tensor as it is at a step: whole numbers, exact in fp32."""
    return _base(group, parameter) + step


class StateEngine:
    """Implements ``train.engine.Engine`` but for the training itself: ``advance`` sets the next step's state."""

    def __init__(self, case: Case, rank: int) -> None:
        plan = case.plan()
        self.chunks: list[torch.nn.Module] = []
        self.step = 0
        self.bf16 = case.compute == "bf16"
        place = plan.topology.coordinates(rank)
        self._dp = (place.dp_rank, plan.topology.dp_size) if case.distributed_optimizer else (0, 1)
        self._first_replica = place.dp_rank == 0
        self._tp_rank = place.tp_rank
        self.parameters: list[tuple[Parameter, Box]] = []
        for chunk in plan.stages[place.pp_rank]:
            for parameter in iter_parameters(plan.shape):
                here = {
                    "embedding": chunk.has_embedding,
                    "layer": parameter.layer in chunk.layers,
                    "final_norm": chunk.has_head,
                    "head": chunk.has_head,
                }[parameter.place]
                if here:
                    box = local_box(
                        parameter,
                        tp_rank=place.tp_rank,
                        tp_size=plan.topology.tp_size,
                        vocab_pad_multiple=plan.vocab_pad_multiple,
                    )
                    self.parameters.append((parameter, box))
        self.state: dict[tuple[str, str], torch.Tensor] = {}
        self.advance(0)

    def groups(self) -> tuple[str, ...]:
        return ("model", *(("master",) if self.bf16 else ()), *MOMENTS)

    def _range(self, group: str, box: Box) -> tuple[int, int]:
        """Return first element and count of what this rank holds of a box."""
        if group == "model":
            return 0, box.numel
        rank, size = self._dp
        each = -(-box.numel // size)
        start = min(rank * each, box.numel)
        return start, min(each, box.numel - start)

    def expected(self, group: str, parameter: Parameter, box: Box, step: int) -> torch.Tensor:
        source = "model" if group == "master" else group
        whole = logical_value(source, parameter, step)
        start, numel = self._range(group, box)
        held = whole[box.slices_within(Box.whole(parameter.shape))].reshape(-1)[start : start + numel]
        return held.bfloat16() if group == "model" and self.bf16 else held.clone()

    def advance(self, step: int) -> None:
        self.step = step
        for group in self.groups():
            for parameter, box in self.parameters:
                value = self.expected(group, parameter, box, step)
                held = self.state.setdefault((group, parameter.name), torch.empty_like(value))
                held.copy_(value)  # in place, as a real optimizer does

    def check(self, step: int) -> None:
        """Compare everything held with what it should be at a step, bit for bit."""
        for group in self.groups():
            for parameter, box in self.parameters:
                expected = self.expected(group, parameter, box, step)
                assert torch.equal(self.state[group, parameter.name], expected), (group, parameter.name)

    def _pieces(self, groups: tuple[str, ...]) -> Iterator[LocalPiece]:
        for group in groups:
            split = group != "model" and self._dp[1] > 1
            for parameter, box in self.parameters:
                held = self.state[group, parameter.name]
                replica = parameter.tp_dim is None and self._tp_rank > 0
                yield LocalPiece(
                    group=group,  # type: ignore[arg-type]
                    name=parameter.name,
                    global_shape=parameter.shape,
                    box=box,
                    flat_start=self._range(group, box)[0] if split else None,
                    tensor=held if split else held.view(box.shape),
                    primary=not replica and (split or self._first_replica),
                )

    def model_pieces(self, *, frozen: bool = False) -> Iterator[LocalPiece]:
        return self._pieces(("model",))

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        return self._pieces(self.groups()[1:])

    def load(self, reader: Any, *, optimizer: bool, step: int = 0) -> None:
        self.step = step
        for group in self.groups() if optimizer else ("model",):
            for parameter, box in self.parameters:
                start, numel = self._range(group, box)
                value = reader.read(group, parameter.name, box).reshape(-1)[start : start + numel]
                self.state[group, parameter.name].copy_(value)
