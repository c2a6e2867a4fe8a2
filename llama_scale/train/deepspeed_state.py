"""What a rank updates under DeepSpeed, in the form that checkpoints take: ZeRO 0 to 3 each keep it elsewhere.

* ZeRO 0: torch's AdamW over the parameters themselves.
* ZeRO 1 and 2 (and bf16's own optimizer): fp32 flat partitions; each parameter knows its range (``_hp_mapping``).
* ZeRO 3: parameters are divided too; a rank has the ``rank``-th of dp equal ranges of every one, padded at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llama_scale.train.adamw import fill_state
from llama_scale.train.engine import LocalPiece, TensorReader
from llama_scale.train.names import LocalParameter
from llama_scale.train.optimizer import MOMENTS, HeldParameter, zero_state
from llama_scale.train.pieces import fill_held, held_piece, owns

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates


def prepare(optimizer: Any, *, stage: int) -> None:
    """Put AdamW's state in place as zeros, so that it can be saved and loaded before the first step."""
    if stage == 3:
        inner = optimizer.optimizer
        for flat in optimizer.fp32_partitioned_groups_flat:
            if flat is not None and flat.numel():
                inner.state[flat] = zero_state(flat)
        return
    fill_state(optimizer if stage == 0 else optimizer.optimizer)


def held_parameters(optimizer: Any, parameters: Iterable[nn.Parameter], *, stage: int) -> Iterator[HeldParameter]:
    """Yield what this rank updates of each parameter that it has a part of."""
    for parameter in parameters:
        if stage == 0:
            yield HeldParameter(parameter=parameter, main=parameter, start=None, state=optimizer.state[parameter])
        elif stage == 3:
            yield _divided(optimizer, parameter)
        elif (mapping := parameter._hp_mapping) is not None:
            yield _fragment(optimizer, parameter, mapping)


def _fragment(optimizer: Any, parameter: nn.Parameter, mapping: Any) -> HeldParameter:
    group = optimizer.optimizer.param_groups[mapping.param_group_index]
    (flat,) = group["params"]
    state = optimizer.optimizer.state[flat]
    address = mapping.hp_fragment_address
    parts = {moment: state[moment].narrow(0, address.start, address.numel) for moment in MOMENTS}
    return HeldParameter(
        parameter=parameter,
        main=mapping.hp_fragment,
        start=mapping.lp_fragment_address.start,
        state=parts | {"step": state["step"]},
    )


def _divided(optimizer: Any, parameter: nn.Parameter) -> HeldParameter:
    group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    state = optimizer.optimizer.state[flat]
    parts = {moment: state[moment].narrow(0, offset, count) for moment in MOMENTS}
    rank = torch.distributed.get_rank(group=parameter.ds_process_group)
    return HeldParameter(
        parameter=parameter,
        main=flat.narrow(0, offset, count),
        start=rank * parameter.ds_tensor.ds_numel,
        state=parts | {"step": state["step"]},
    )


def forget_whole_weights(optimizer: Any) -> None:
    """Replace every whole copy of a weight that ZeRO 3 has on this rank, gathered or kept, by what was just loaded."""
    optimizer.parameter_offload.partition_all_parameters()
    kept = optimizer.persistent_parameters
    if kept:
        kept[0].all_gather(kept)


@torch.no_grad()
def refresh(held: Iterable[HeldParameter], *, stage: int) -> None:
    """Bring fp32 partitions in line with weights that were just loaded in fp32 training."""
    for part in held:
        if part.is_copy or stage in (0, 3):
            continue
        assert part.start is not None
        flat = part.parameter.detach().reshape(-1)
        part.main.copy_(flat[part.start : part.start + part.main.numel()])


def _divided_weight(parameter: nn.Parameter) -> HeldParameter:
    """Describe this rank's range of a weight itself; frozen weights are divided, too, but nothing updates them."""
    rank = torch.distributed.get_rank(group=parameter.ds_process_group)
    start = rank * parameter.ds_tensor.ds_numel
    return HeldParameter(parameter=parameter, main=parameter.ds_tensor.data, start=start, state={})


def divided_weight_pieces(
    parameters: Iterable[LocalParameter], plan: RunPlan, coordinates: Coordinates, *, frozen: bool
) -> Iterator[LocalPiece]:
    """Yield this rank's ranges of ZeRO 3's divided weights; see ``pieces.weight_pieces``."""
    for local in parameters:
        if not (frozen or plan.trains(local.parameter)):
            continue
        part = _divided_weight(local.tensor)
        piece = held_piece(local, part, group="model", tensor=part.main, primary=owns(local, coordinates))
        if piece is not None:
            yield piece


@torch.no_grad()
def fill_divided(
    reader: TensorReader,
    parameters: Iterable[LocalParameter],
    held: Iterable[HeldParameter],
    *,
    optimizer: bool,
    step: int,
) -> None:
    """Fill ZeRO 3's divided weights, masters and moments from a checkpoint of any layout; see ``pieces.fill_from``."""
    by_parameter = {id(h.parameter): h for h in held}
    masters = set(reader.tensors("master"))
    for local in parameters:
        fp32_group = "master" if local.name in masters else "model"
        weight = _divided_weight(local.tensor)
        fill_held(weight.main, local, weight, reader=reader, group="model" if weight.is_copy else fp32_group)
        part = by_parameter.get(id(local.tensor))
        if part is None:
            continue
        if part.is_copy:
            fill_held(part.main, local, part, reader=reader, group=fp32_group)
        else:
            part.main.copy_(weight.main)
        for moment in MOMENTS:
            if optimizer:
                fill_held(part.state[moment], local, part, reader=reader, group=moment)
            else:
                part.state[moment].zero_()
        part.state["step"].fill_(step if optimizer else 0)
