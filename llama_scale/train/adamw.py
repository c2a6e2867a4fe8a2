"""Torch's AdamW over a model's fp32 tensors, for the engines that do not bring an optimizer of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from llama_scale.train.optimizer import zero_state

if TYPE_CHECKING:
    from llama_scale.spec.optimizer import AdamW


def parameter_groups(tensors: Iterable[torch.Tensor], settings: AdamW) -> list[dict[str, Any]]:
    """Divide tensors into matrices, which are decayed, and vectors (the norms' weights), which are not."""
    groups: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for tensor in tensors:
        groups[tensor.dim() < 2].append(tensor)
    decays = (settings.weight_decay, 0.0)
    return [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True) if group]


def make_adamw(groups: list[dict[str, Any]], settings: AdamW, *, fused: bool = True) -> torch.optim.AdamW:
    """Return torch's AdamW with its hyper-parameters from the spec; the loop sets ``lr`` before each step."""
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Put moments of zero and a step count in place, as a first step would."""
    for group in optimizer.param_groups:
        for main in group["params"]:
            optimizer.state[main].update(zero_state(main))
