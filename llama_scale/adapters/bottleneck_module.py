"""What a bottleneck computes in a layer; copied into exported models, so it imports torch and the interface alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llama_scale.extensions.adapter import LayerAdapter

_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Bottleneck(LayerAdapter):
    """``y + up(activation(down(y)))`` of what a block adds to the residual stream."""

    def blocks(self) -> frozenset[str]:
        """See ``LayerAdapter.blocks``."""
        return frozenset(self.options.after)

    def block(self, which: str, y: torch.Tensor) -> torch.Tensor:
        """Change a block's result; see ``LayerAdapter.block``."""
        down, up = self.weight(f"{which}.down"), self.weight(f"{which}.up")
        inner = F.linear(y.to(down.dtype), down, self.weight(f"{which}.down_bias"))
        change = F.linear(_ACTIVATIONS[self.options.activation](inner), up, self.weight(f"{which}.up_bias"))
        return (y + change).to(y.dtype)
