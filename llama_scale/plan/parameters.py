"""Parameters of each rank as its tensors hold them: padding rows and the tied embedding's second copy included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_scale.layout.parameters import (
    EMBEDDING,
    HEAD,
    Parameter,
    iter_parameters,
    layer_parameters,
    padded_vocab_size,
)
from llama_scale.plan.stages import Chunk, Stages
from llama_scale.spec.model import ModelShape

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RankParameter:
    """One parameter tensor of one rank.

    Args:
        name: Name of the tensor; the tied embedding's copy on the last stage is ``output_layer.weight``.
        numel: Elements in memory, padding rows included.
        replicated: Every tensor parallel rank holds the same elements.
        tied_copy: A second copy of the embedding, kept equal by an all-reduce of its gradient.
        virtual_rank: The model chunk that holds it.
    """

    name: str
    numel: int
    replicated: bool
    tied_copy: bool
    virtual_rank: int


def rank_parameters(plan: RunPlan, pp_rank: int, tp_rank: int) -> list[RankParameter]:
    """Return the parameter tensors of the ranks at this pipeline and tensor coordinate, in model order.

    Raises:
        IndexError: a coordinate lies outside the plan's topology.
    """
    if not 0 <= tp_rank < plan.topology.tp_size:
        raise IndexError(f"tp_rank={tp_rank} lies outside 0..{plan.topology.tp_size - 1}")
    return stage_parameters(
        plan.shape,
        plan.stages,
        pp_rank=pp_rank,
        tp_size=plan.topology.tp_size,
        vocab_pad_multiple=plan.vocab_pad_multiple,
    )


def stage_parameters(
    shape: ModelShape, stages: Stages, *, pp_rank: int, tp_size: int, vocab_pad_multiple: int
) -> list[RankParameter]:
    """Return the parameter tensors of one rank of a stage; tensor parallel ranks hold equally many elements.

    Raises:
        IndexError: no such stage.
    """
    if not 0 <= pp_rank < len(stages):
        raise IndexError(f"pp_rank={pp_rank} lies outside 0..{len(stages) - 1}")
    result = []
    for virtual_rank, chunk in enumerate(stages[pp_rank]):
        for parameter, tied_copy in _chunk_parameters(shape, chunk):
            numel = parameter.numel
            if parameter.place in ("embedding", "head"):
                rows = padded_vocab_size(shape.vocab_size, tp_size=tp_size, multiple=vocab_pad_multiple)
                numel = rows * shape.hidden_size
            result.append(
                RankParameter(
                    name=HEAD if tied_copy else parameter.name,
                    numel=numel if parameter.tp_dim is None else numel // tp_size,
                    replicated=parameter.tp_dim is None,
                    tied_copy=tied_copy,
                    virtual_rank=virtual_rank,
                )
            )
    return result


def stage_numel(shape: ModelShape, stages: Stages, *, pp_rank: int, tp_size: int, vocab_pad_multiple: int) -> int:
    """Return the parameter elements that one rank of a stage holds in memory."""
    # Layers are alike, so one stands for all: a plan of 16384 ranks and 126 layers stays instant.
    per_layer = sum(p.numel // (1 if p.tp_dim is None else tp_size) for p in layer_parameters(shape, 0))
    rows = padded_vocab_size(shape.vocab_size, tp_size=tp_size, multiple=vocab_pad_multiple)
    table = rows * shape.hidden_size // tp_size
    total = 0
    for chunk in stages[pp_rank]:
        total += per_layer * len(chunk.layers)
        total += table if chunk.has_embedding else 0
        if chunk.has_head:
            total += shape.hidden_size  # final norm
            total += 0 if shape.tie_word_embeddings and chunk.has_embedding else table
    return total


def model_numel(shape: ModelShape) -> int:
    """Return the parameters of the model itself: no padding, a tied embedding counted once."""
    return sum(p.numel for p in iter_parameters(shape))


def _chunk_parameters(shape: ModelShape, chunk: Chunk) -> Iterator[tuple[Parameter, bool]]:
    ends = {p.name: p for p in iter_parameters(shape) if p.place != "layer"}
    if chunk.has_embedding:
        yield ends.pop(EMBEDDING), False
    for layer in chunk.layers:
        for parameter in layer_parameters(shape, layer):
            yield parameter, False
    if chunk.has_head:
        for name, parameter in ends.items():
            if name != EMBEDDING:
                yield parameter, False
        if shape.tie_word_embeddings and not chunk.has_embedding:
            yield ends[EMBEDDING], True
