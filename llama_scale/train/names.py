"""Join a rank's real tensors with the table of logical parameters; checkpoint, init, convert and tests use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import EMBEDDING, HEAD, Parameter, local_box

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalParameter:
    """Bind a rank's tensor to the logical parameter it is a part of.

    Args:
        parameter: Row of the table.
        tensor: The module's own parameter, in the module's shape; embedding and head have padding rows at the end.
        box: The part of the logical tensor it holds. The tensor's first ``box.numel`` elements, in row-major order,
            are the box's elements: everything behind them is padding.
        tied_copy: The last stage's second copy of a tied embedding.
    """

    parameter: Parameter
    tensor: nn.Parameter
    box: Box
    tied_copy: bool = False

    @property
    def name(self) -> str:
        """Name of the logical parameter."""
        return self.parameter.name

    def view(self, flat: torch.Tensor | None = None) -> torch.Tensor:
        """Return the box's elements as a box-shaped view without padding.

        Args:
            flat: A tensor with as many elements as ``tensor`` (e.g. its gradient); default: the parameter's data.
        """
        source = self.tensor.detach() if flat is None else flat
        return source.reshape(-1)[: self.box.numel].view(self.box.shape)


_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Transformer Engine keeps a norm's weight inside the linear layer that follows it."""

ANCHOR = "anchor"
"""A chunk's parameter without meaning, in no table: it trains where nothing else of the chunk does, for optimizers and
backward passes that need something there."""


def global_name(name: str, layers: Sequence[int]) -> str:
    """Turn a chunk's parameter name into the table's: global layer number, norms unfused.

    Args:
        name: Name from ``named_parameters``, e.g. ``decoder.layers.0.mlp.linear_fc1.weight``.
        layers: Global numbers of the chunk's layers.
    """
    prefix = "decoder.layers."
    if not name.startswith(prefix):
        return name
    local, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{layers[int(local)]}.{_FUSED_NORMS.get(rest, rest)}"


def logical_parameters(
    chunks: Sequence[nn.Module], plan: RunPlan, coordinates: Coordinates
) -> Iterator[LocalParameter]:
    """Yield every parameter tensor of a rank once, bound to its row of the table.

    Args:
        chunks: This rank's bare model chunks.
        plan: The run's plan.
        coordinates: This rank's place.

    Raises:
        KeyError: A module has a parameter that the table does not know (a bug).
    """
    table = {p.name: p for p in plan.all_parameters()}
    tp_size = plan.topology.tp_size
    for chunk, module in zip(plan.stages[coordinates.pp_rank], chunks, strict=True):
        for local, tensor in module.named_parameters():
            if local == ANCHOR:
                continue
            name = global_name(local, chunk.layers)
            tied_copy = name == HEAD and plan.shape.tie_word_embeddings
            parameter = table[EMBEDDING if tied_copy else name]
            box = local_box(
                parameter,
                tp_rank=coordinates.tp_rank,
                tp_size=tp_size,
                vocab_pad_multiple=plan.vocab_pad_multiple,
            )
            yield LocalParameter(parameter=parameter, tensor=tensor, box=box, tied_copy=tied_copy)
