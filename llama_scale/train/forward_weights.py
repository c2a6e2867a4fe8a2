"""Weights of a checkpoint for a forward pass: all of them at once, or each module's while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llama_scale.convert.weights import Weights
from llama_scale.train.names import LocalParameter, logical_parameters

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates
    from llama_scale.train.model import LlamaModel


def load_weights(
    chunks: Sequence[LlamaModel],
    plan: RunPlan,
    coordinates: Coordinates,
    *,
    weights: Weights,
    dtype: torch.dtype,
) -> None:
    """Fill a rank's chunks from a checkpoint of any layout, the base rounded to ``dtype``; padding rows become zero."""
    for local in logical_parameters(chunks, plan, coordinates):
        _fill(local, weights=weights, dtype=dtype)


def stream_weights(
    chunks: Sequence[LlamaModel],
    plan: RunPlan,
    coordinates: Coordinates,
    *,
    weights: Weights,
    dtype: torch.dtype,
) -> None:
    """Do as ``load_weights`` does, but let each module load its weights when it is called, and drop them afterwards.

    The chunks have been built with ``initialize=False``, so that none of their memory was touched.
    """
    held = {id(local.tensor): local for local in logical_parameters(chunks, plan, coordinates)}
    shapes = {key: local.tensor.shape for key, local in held.items()}

    def load(own: Sequence[LocalParameter]) -> None:
        for local in own:
            local.tensor.data = torch.empty(shapes[id(local.tensor)])
            _fill(local, weights=weights, dtype=dtype)

    for local in held.values():
        _drop([local])
    for chunk in chunks:
        for module in chunk.modules():
            own = [held[id(parameter)] for parameter in module.parameters(recurse=False)]
            is_head = chunk.post_process and module is chunk.output_layer
            if is_head and not own:  # tied to the embedding of the same chunk
                own = [held[id(chunk.head_weight())]]
            if own:
                module.register_forward_pre_hook(lambda *_, own=own: load(own))
            if own and not is_head:  # the head is never called, only asked for its matrix: see LlamaModel.head_weight
                module.register_forward_hook(lambda *_, own=own: _drop(own))


def _fill(local: LocalParameter, *, weights: Weights, dtype: torch.dtype) -> None:
    local.tensor.detach().zero_()
    if local.box.numel:
        kind = dtype if local.parameter.owner == "base" else torch.float32
        local.view().copy_(weights.read(local.name, local.box, out=torch.empty(local.box.shape, dtype=kind)))
    weights.release()


def _drop(own: Sequence[LocalParameter]) -> None:
    for local in own:
        local.tensor.data = torch.empty(0)
