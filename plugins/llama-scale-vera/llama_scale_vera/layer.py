"""What VeRA computes in a layer; copied into exported models, so it imports torch and the adapter interface alone.

Shape letters: S sequence, R rows, O outputs, I inputs, K rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from llama_scale.extensions.adapter import LINEARS, ROW, LayerAdapter, LayerContext


class Vera(LayerAdapter):
    """``W x + b * (B (d * (A x)))`` with frozen A ``[K, I]`` and B ``[O, K]``."""

    def __init__(self, options: Any, context: LayerContext) -> None:
        super().__init__(options, context)
        self._targets = frozenset(LINEARS if options.targets == "all-linear" else options.targets)

    def outputs(self) -> frozenset[str]:
        """See ``LayerAdapter.outputs``."""
        return self._targets

    def output(self, target: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add the update; see ``LayerAdapter.output``."""
        tensor, row = self.context.tensor, target in ROW
        d, b = self._d(target), self.weight(f"{target}.b")
        # Local: the inputs of a row parallel layer, the outputs of a column parallel one.
        a = self._matrix("A", x.shape[-1], divided=row, device=d.device)
        up = self._matrix("B", y.shape[-1], divided=not row, device=d.device)
        low = F.linear(x.to(d.dtype), a)
        low = tensor.leave(low) * d if row else tensor.enter(low * d)
        return (y.to(d.dtype) + F.linear(low, up) * b).to(y.dtype)

    def merged_weight(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """See ``LayerAdapter.merged_weight``."""
        if target not in self._targets:
            return weight
        d, b = self._d(target).detach(), self.weight(f"{target}.b").detach()
        outputs, inputs = weight.shape
        a = self._matrix("A", inputs, divided=False, device=d.device)
        up = self._matrix("B", outputs, divided=False, device=d.device)
        return weight.to(d.dtype) + (b[:, None] * up) @ (d[:, None] * a)

    def _d(self, target: str) -> torch.Tensor:
        return self.weight(f"{target}.d") * self.options.d_initial

    def _matrix(self, name: str, size: int, *, divided: bool, device: torch.device) -> torch.Tensor:
        """Return this rank's part of A or B, drawn from the run's seed once for all layers.

        Args:
            name: A or B.
            size: Columns of A, or rows of B, that are wanted here.
            divided: They are this rank's part of ``size * ranks`` many.
            device: Where the part is wanted.
        """
        parts, part = (self.context.tensor.size, self.context.tensor.rank) if divided else (1, 0)
        key = (name, size, parts, str(device))
        if key not in self.context.shared:
            self.context.shared[key] = self._draw(name, size * parts)[part * size : (part + 1) * size].to(device)
        matrix: torch.Tensor = self.context.shared[key]
        return matrix.t() if name == "A" else matrix

    def _draw(self, name: str, size: int) -> torch.Tensor:
        """Return the whole of A transposed, or of B: ``[size, K]``, Kaiming uniform as in the paper."""
        generator = torch.Generator().manual_seed(2 * self.context.seed + (name == "B"))
        rank = self.options.rank
        bound = math.sqrt(3.0 / (size if name == "A" else rank))
        return torch.empty(size, rank).uniform_(-bound, bound, generator=generator)
