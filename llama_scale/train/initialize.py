"""Initial weights of a rank's chunks, the same values whatever the layout; see ``checkpoint.initial``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from llama_scale.checkpoint.initial import fill, standard_deviation
from llama_scale.train.names import logical_parameters

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.plan.topology import Coordinates


@torch.no_grad()
def initialize_chunks(
    chunks: Sequence[nn.Module], plan: RunPlan, coordinates: Coordinates, *, seed: int, std: float
) -> None:
    """Fill a rank's weights in place by the table's rules; padding rows become zeros.

    Args:
        chunks: This rank's bare model chunks.
        plan: The run's plan.
        coordinates: This rank's place.
        seed: The run's seed.
        std: Standard deviation of the base.
    """
    for local in logical_parameters(chunks, plan, coordinates):
        local.tensor.zero_()
        own = standard_deviation(local.parameter, std=std, num_layers=plan.shape.num_layers)
        fill(local.view(), local.parameter, local.box, seed=seed, std=own)
