"""The public, heavy side of a gate plugin; imports torch alone and is copied into exported Hugging Face models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Gate(nn.Module):
    """A router that weighs the adapters by what it reads; subclass this.

    Its parameters are those that the descriptor names (``self.get_parameter(name)``), whole on every rank, fp32.

    Args:
        options: The gate's options.
        adapters: Number of adapters, N.
    """

    def __init__(self, options: Any, adapters: int) -> None:
        super().__init__()
        self.options = options
        self.adapters = adapters

    def forward(self, trunk: torch.Tensor) -> torch.Tensor:
        """Return scores ``[..., N]`` for the unadapted trunk ``[..., hidden]``; their softmax is p(a_i)."""
        raise NotImplementedError
