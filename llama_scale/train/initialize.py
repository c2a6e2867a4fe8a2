"""Initial weights as a pure function of (seed, parameter name, element), whatever the layout.

The last two dims of a logical tensor are divided into tiles; each tile has its own random stream, seeded from its
address. A rank draws the tiles that its box touches and keeps its part: no rank ever holds more than one tile beside
its own weights, and none needs another.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from llama_scale.layout.boxes import Box
from llama_scale.train.names import logical_parameters

if TYPE_CHECKING:
    from llama_scale.layout.parameters import Parameter
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates

_TILE = (128, 512)


def initialize_chunks(
    chunks: Sequence[nn.Module], plan: RunPlan, coordinates: Coordinates, *, seed: int, std: float
) -> None:
    """Fill a rank's weights in place by the table's rules; padding rows become zeros.

    Args:
        chunks: This rank's bare model chunks.
        plan: The run's plan.
        coordinates: This rank's place.
        seed: The run's seed.
        std: Standard deviation of the base; projections back into the residual stream get ``std / sqrt(2 * layers)``
            (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3).
    """
    for local in logical_parameters(chunks, plan, coordinates):
        with torch.no_grad():
            local.tensor.zero_()
            own = std if local.parameter.std is None else local.parameter.std
            fill(
                local.view(),
                local.parameter,
                local.box,
                seed=seed,
                std=own / math.sqrt(2 * plan.shape.num_layers) if local.parameter.init == "scaled" else own,
            )


def fill(target: torch.Tensor, parameter: Parameter, box: Box, *, seed: int, std: float) -> None:
    """Fill ``target``, which is shaped like ``box``, with that part of a parameter's initial value.

    ``kaiming_uniform`` is torch's default of a linear layer (He et al. 2015, arXiv:1502.01852, with a = sqrt(5)):
    uniform within one over the root of the inputs.
    """
    if parameter.init in ("ones", "zeros"):
        target.fill_(1.0 if parameter.init == "ones" else 0.0)
        return
    if len(parameter.shape) < 2:
        box = Box((0,) * (2 - len(box.shape)) + box.offset, (1,) * (2 - len(box.shape)) + box.shape)
        parameter = replace(parameter, shape=(1,) * (2 - len(parameter.shape)) + parameter.shape)
        target = target.view(box.shape)
    draw = (
        partial(_uniform, bound=1 / math.sqrt(parameter.shape[-1]))
        if parameter.init == "kaiming_uniform"
        else (partial(_normal, std=std))
    )
    rows, columns = parameter.shape[-2:]
    leading = [range(o, o + n) for o, n in zip(box.offset[:-2], box.shape[:-2], strict=True)]
    for index in itertools.product(*leading):
        matrix = target[tuple(i - o for i, o in zip(index, box.offset, strict=False))]
        part = Box(box.offset[-2:], box.shape[-2:])
        for row, column in itertools.product(_tiles(part, 0), _tiles(part, 1)):
            tile_box = Box(
                (row * _TILE[0], column * _TILE[1]),
                (min(_TILE[0], rows - row * _TILE[0]), min(_TILE[1], columns - column * _TILE[1])),
            )
            common = tile_box.intersect(part)
            assert common is not None, "only touched tiles are visited"
            tile = draw(tile_box.shape, _generator(seed, f"{parameter.name}/{index}/{row}/{column}"))
            matrix[common.slices_within(part)] = tile[common.slices_within(tile_box)].to(matrix)


def _tiles(box: Box, dim: int) -> range:
    """Return the numbers of the tiles that a matrix box touches along a dim."""
    if box.numel == 0:
        return range(0)
    size = _TILE[dim]
    return range(box.offset[dim] // size, (box.offset[dim] + box.shape[dim] - 1) // size + 1)


def _generator(seed: int, address: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{address}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def _normal(shape: tuple[int, ...], generator: torch.Generator, *, std: float) -> torch.Tensor:
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator, *, bound: float) -> torch.Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
