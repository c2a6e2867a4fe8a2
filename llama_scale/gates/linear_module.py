"""What the linear gate computes; copied into exported models, so it imports torch and the gate interface alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llama_scale.extensions.gate import Gate


class LinearGate(Gate):
    """Scores ``W h + b``."""

    def forward(self, trunk: torch.Tensor) -> torch.Tensor:
        """See ``Gate.forward``."""
        weight = self.get_parameter("weight")
        return F.linear(trunk.to(weight.dtype), weight, self.get_parameter("bias"))
