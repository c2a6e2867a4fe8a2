"""What LoRA computes in a layer; copied into exported models, so it imports torch and the adapter interface alone.

Shape letters: S sequence, R rows, O outputs, I inputs, K rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llama_scale.extensions.adapter import LINEARS, ROW, LayerAdapter, LayerContext, LowRank


class Lora(LayerAdapter):
    """Low-rank updates of chosen linear layers."""

    def __init__(self, options: Any, context: LayerContext) -> None:
        super().__init__(options, context)
        self._targets = frozenset(LINEARS if options.targets == "all-linear" else options.targets)

    def _scale(self, target: str, a: torch.Tensor) -> float:
        rank = a.shape[0]
        alpha = self.options.alphas.get(target, self.options.alpha)
        return float(alpha / (rank**0.5 if self.options.rs_lora else rank))

    def outputs(self) -> frozenset[str]:
        """See ``LayerAdapter.outputs``."""
        return self._targets

    def output(self, target: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add the update; see ``LayerAdapter.output``."""
        change, tensor = self.low_rank(target), self.context.tensor
        a, b = change.a, change.b
        low = F.linear(x.to(a.dtype), a)
        # Whole after this: the one exchange is over K numbers a token, in the forward or the backward pass.
        low = tensor.leave(low) if target in ROW else tensor.enter(low)
        flat = torch.addmm(y.to(b.dtype).flatten(0, 1), low.flatten(0, 1), b.t(), alpha=change.scale)
        result = flat.unflatten(0, y.shape[:2])
        if change.factor is not None:
            result = result * change.factor
        return result.to(y.dtype)

    def low_rank(self, target: str) -> LowRank:
        """See ``LayerAdapter.low_rank``."""
        a, b = self.weight(f"{target}.lora_A"), self.weight(f"{target}.lora_B")
        factor = self._magnitude_over_norm(target, a, b) if self.options.dora else None
        return LowRank(a, b, self._scale(target, a), factor)

    def _magnitude_over_norm(self, target: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return DoRA's factor of each output, ``[O]``; the norm counts as a constant (the paper's section 4.3)."""
        with torch.no_grad():
            weight = self.context.base_weight(target).to(a.dtype)
            # |W + s B A|^2 by rows, from products with a side of length K: the sum is never built.
            base = weight.square().sum(1)
            cross = (b * (weight @ a.t())).sum(1)
            own = (b * (b @ (a @ a.t()))).sum(1)
            scale = self._scale(target, a)
            squares = torch.stack((base, base + 2 * scale * cross + scale * scale * own))
            if target in ROW:
                squares = self.context.tensor.sum(squares)
            start, norm = squares.clamp_min_(0).sqrt_()
        return (start + self.weight(f"{target}.magnitude_change")) / norm

    def merged_weight(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """See ``LayerAdapter.merged_weight``."""
        if target not in self._targets:
            return weight
        a, b = self.weight(f"{target}.lora_A").detach(), self.weight(f"{target}.lora_B").detach()
        weight = weight.to(a.dtype)
        merged = torch.addmm(weight, b, a, alpha=self._scale(target, a))
        if not self.options.dora:
            return merged
        magnitude = weight.norm(dim=1) + self.weight(f"{target}.magnitude_change").detach()
        return merged * (magnitude / merged.norm(dim=1)).unsqueeze(1)
