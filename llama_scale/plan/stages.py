"""Which layers a pipeline stage holds, virtual stages in Megatron-Core's interleaved order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_scale.errors import Problem, SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One model chunk: consecutive layers that one pipeline rank computes in one go.

    Args:
        layers: Global layer numbers, ascending.
        has_embedding: The chunk starts with the word embedding (first chunk of the first stage).
        has_head: The chunk ends with the final norm and the output layer (last chunk of the last stage).
    """

    layers: tuple[int, ...]
    has_embedding: bool
    has_head: bool


Stages = tuple[tuple[Chunk, ...], ...]
"""Chunks indexed ``[pp_rank][virtual_rank]``."""


def layer_counts(
    num_layers: int, *, pp_size: int, vp_size: int = 1, stage_layers: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return how many layers each of the ``pp_size * vp_size`` chunks holds, in the order of the forward pass.

    Args:
        num_layers: Layers of the model.
        pp_size: Pipeline stages.
        vp_size: Chunks per stage.
        stage_layers: Given counts instead of equal ones, in the same order.

    Raises:
        SpecError: the layers do not divide evenly and no counts are given, or the given counts do not fit.
    """
    chunks = pp_size * vp_size
    if stage_layers is None:
        if num_layers % chunks:
            raise SpecError([_uneven(num_layers, pp_size=pp_size, vp_size=vp_size)])
        return (num_layers // chunks,) * chunks
    counts = tuple(stage_layers)
    path = ("parallel", "stage_layers")
    shown = f"stage_layers={list(counts)}"
    problems = []
    if len(counts) != chunks:
        problems.append(
            Problem(
                path=path,
                message=f"{shown} has {len(counts)} numbers, but pipeline={pp_size} x virtual_stages={vp_size} "
                f"needs {chunks}",
                hint="give one number for each chunk, in the order of the forward pass",
                code="stage-layers-length",
            )
        )
    if any(n < 1 for n in counts):
        problems.append(
            Problem(
                path=path,
                message=f"{shown} holds a number below 1; every chunk needs at least one layer",
                hint="use fewer stages, or give each at least 1 layer",
                code="stage-layers-positive",
            )
        )
    if sum(counts) != num_layers:
        problems.append(
            Problem(
                path=path,
                message=f"{shown} sums to {sum(counts)}, but the model has num_layers={num_layers}",
                hint=f"make the numbers sum to {num_layers}",
                code="stage-layers-sum",
            )
        )
    if problems:
        raise SpecError(problems)
    return counts


def make_stages(
    num_layers: int, *, pp_size: int, vp_size: int = 1, stage_layers: Sequence[int] | None = None
) -> Stages:
    """Divide the layers over pipeline ranks and their virtual stages.

    Chunk v of pipeline rank p is virtual stage ``v * pp_size + p``: the forward pass visits every rank vp times
    (Narayanan et al. 2021, arXiv:2104.04473, section 2.2; Megatron-Core ``get_transformer_layer_offset``).

    Raises:
        SpecError: see :func:`layer_counts`.

    Example:
        >>> [[chunk.layers for chunk in stage] for stage in make_stages(4, pp_size=2, vp_size=2)]
        [[(0,), (2,)], [(1,), (3,)]]
    """
    counts = layer_counts(num_layers, pp_size=pp_size, vp_size=vp_size, stage_layers=stage_layers)
    last = pp_size * vp_size - 1
    starts = [sum(counts[:index]) for index in range(last + 1)]

    def chunk(index: int) -> Chunk:
        layers = tuple(range(starts[index], starts[index] + counts[index]))
        return Chunk(layers=layers, has_embedding=index == 0, has_head=index == last)

    return tuple(tuple(chunk(v * pp_size + p) for v in range(vp_size)) for p in range(pp_size))


def _uneven(num_layers: int, *, pp_size: int, vp_size: int) -> Problem:
    def valid(*, times: int) -> str:
        good = [n for n in range(1, num_layers // times + 1) if num_layers % (n * times) == 0]
        return ", ".join(str(n) for n in good) or "none"

    if vp_size > 1 and num_layers % pp_size == 0:
        path, message = "virtual_stages", f"pipeline={pp_size} x virtual_stages={vp_size}"
        hint = f"use virtual_stages {valid(times=pp_size)}, or give parallel.stage_layers"
    else:
        path = "pipeline"
        message = f"pipeline={pp_size}" + (f" x virtual_stages={vp_size}" if vp_size > 1 else "")
        hint = f"use pipeline {valid(times=vp_size)}, or give parallel.stage_layers"
    return Problem(
        path=("parallel", path),
        message=f"{message} does not divide num_layers={num_layers}",
        hint=hint,
        code="layers-divisible",
    )
