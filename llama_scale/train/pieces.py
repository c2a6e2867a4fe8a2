"""A rank's weights and optimizer state as pieces of logical tensors, and back: the form that checkpoints have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from llama_scale.layout.parameters import EMBEDDING
from llama_scale.train.engine import LocalPiece, TensorReader
from llama_scale.train.names import LocalParameter
from llama_scale.train.optimizer import MOMENTS, HeldParameter

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates


def weight_pieces(
    parameters: Iterable[LocalParameter], plan: RunPlan, coordinates: Coordinates, *, frozen: bool
) -> Iterator[LocalPiece]:
    """Yield a rank's weights; replicas share the writing among the data parallel ranks, parameter by parameter.

    Args:
        parameters: All of the rank's.
        plan: The run's plan.
        coordinates: This rank's place.
        frozen: Yield those that do not train, too.
    """
    for index, local in enumerate(parameters):
        if not (frozen or plan.trains(local.parameter)):
            continue
        yield LocalPiece(
            group="model",
            name=local.name,
            global_shape=local.parameter.shape,
            box=local.box,
            flat_start=None,
            tensor=local.view(),
            primary=owns(local, coordinates) and index % plan.topology.dp_size == coordinates.dp_rank,
        )


def main_pieces(
    parameters: Iterable[LocalParameter], held: Iterable[HeldParameter], plan: RunPlan, coordinates: Coordinates
) -> Iterator[LocalPiece]:
    """Yield a rank's fp32 masters (where weights are not fp32) and moments."""
    by_parameter = {id(h.parameter): h for h in held}
    for index, local in enumerate(parameters):
        part = by_parameter.get(id(local.tensor))
        if part is None:
            continue
        # Flat ranges are in one rank only; whole tensors are in all replicas.
        primary = owns(local, coordinates) and (
            part.start is not None or index % plan.topology.dp_size == coordinates.dp_rank
        )
        for group, tensor in _tensors(part):
            piece = held_piece(local, part, group=group, tensor=tensor.detach(), primary=primary)
            if piece is not None:
                yield piece


def owns(local: LocalParameter, coordinates: Coordinates) -> bool:
    """Tell whether this tensor parallel rank and stage is the one that writes its part."""
    return not local.tied_copy and (local.parameter.tp_dim is not None or coordinates.tp_rank == 0)


def _tensors(part: HeldParameter) -> Iterator[tuple[str, torch.Tensor]]:
    if part.is_copy:
        yield "master", part.main
    for moment in MOMENTS:
        yield moment, part.state[moment]


def held_piece(
    local: LocalParameter, part: HeldParameter, *, group: str, tensor: torch.Tensor, primary: bool
) -> LocalPiece | None:
    """Describe a tensor that goes with what a rank updates of a parameter; None if it holds nothing but padding."""
    if part.start is None:
        flat_start, values = None, local.view(tensor)
    else:
        count = existing_elements(local, part)
        if count == 0:
            return None
        flat_start, values = part.start, tensor[:count]
    return LocalPiece(
        group=group,  # type: ignore[arg-type]
        name=local.name,
        global_shape=local.parameter.shape,
        box=local.box,
        flat_start=flat_start,
        tensor=values,
        primary=primary,
    )


def existing_elements(local: LocalParameter, part: HeldParameter) -> int:
    """Return how many of a flat range's elements are no padding; padding is behind the box."""
    assert part.start is not None
    return max(0, min(part.main.numel(), local.box.numel - part.start))


def expected_parameters(
    parameters: Iterable[LocalParameter], reader: TensorReader, plan: RunPlan, *, optimizer: bool
) -> Iterator[LocalParameter]:
    """Yield the parameters that a checkpoint fills.

    Args:
        parameters: All of the rank's.
        reader: The checkpoint.
        plan: The run's plan.
        optimizer: Training goes on from it, so it has what trains; otherwise it is a base to start from, or adapters,
            and what it does not know of stays as it is.
    """
    stored = set(reader.tensors("model"))
    whole = EMBEDDING in stored
    for local in parameters:
        started = local.name in stored or (whole and local.parameter.owner == "base")
        if plan.trains(local.parameter) if optimizer else started:
            yield local


@torch.no_grad()
def fill_from(
    reader: TensorReader,
    parameters: Iterable[LocalParameter],
    held: Iterable[HeldParameter],
    *,
    optimizer: bool,
    step: int,
) -> None:
    """Fill weights, masters and (with ``optimizer``) moments from a checkpoint of any layout and precision.

    Where the checkpoint has fp32 masters, fp32 tensors are filled from them. ``parameters`` are those that it should
    hold (``expected_parameters``); the others stay as they are, without moments.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    by_parameter = {id(h.parameter): h for h in held}
    masters = set(reader.tensors("master"))
    for local in parameters:
        fp32_group = "master" if local.name in masters else "model"
        local.tensor.zero_()
        group = fp32_group if local.tensor.dtype == torch.float32 else "model"
        if local.box.numel:
            local.view().copy_(reader.read(group, local.name, local.box))
        part = by_parameter.get(id(local.tensor))
        if part is None:
            continue
        if part.is_copy:
            fill_held(part.main, local, part, reader=reader, group=fp32_group)
        for moment in MOMENTS:
            if optimizer:
                fill_held(part.state[moment], local, part, reader=reader, group=moment)
            else:
                part.state[moment].zero_()
        part.state["step"].fill_(step if optimizer else 0)


def fill_held(
    target: torch.Tensor, local: LocalParameter, part: HeldParameter, *, reader: TensorReader, group: str
) -> None:
    """Fill a tensor that goes with what a rank updates of a parameter from a checkpoint."""
    target.zero_()
    if part.start is None:
        if local.box.numel:
            local.view(target).copy_(reader.read(group, local.name, local.box))
        return
    count = existing_elements(local, part)
    if count:
        target[:count].copy_(reader.read_range(group, local.name, local.box, start=part.start, numel=count))
