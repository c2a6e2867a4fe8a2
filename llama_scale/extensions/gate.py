"""The public, heavy side of a gate plugin; imports torch alone and is copied into exported Hugging Face models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Gate(nn.Module):
    """A router that weighs the adapters by what it reads; subclass this.

    It reads the base model without any adapter: its last hidden state, after the final norm, at the position that
    predicts. Its parameters are those that the descriptor names (``self.get_parameter(name)``): fp32, whole on every
    rank.

    Args:
        options: The gate's options; their values only, because an exported model has no methods.
        adapters: Number of adapters, N.
    """

    def __init__(self, options: Any, adapters: int) -> None:
        super().__init__()
        self.options = options
        self.adapters = adapters

    def forward(self, trunk: torch.Tensor) -> torch.Tensor:
        """Return fp32 scores ``[..., N]`` for hidden states ``[..., hidden]`` of the unadapted model.

        Their softmax is p(a_i). The hidden states carry no gradient: nothing below them trains.
        """
        raise NotImplementedError
