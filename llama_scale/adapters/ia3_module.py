"""What IA3 computes in a layer; copied into exported models, so it imports torch and the adapter interface alone."""

from __future__ import annotations

from typing import Any

import torch

from llama_scale.extensions.adapter import ROW, LayerAdapter, LayerContext


class Ia3(LayerAdapter):
    """Factors on outputs of column parallel layers and on inputs of row parallel ones."""

    def __init__(self, options: Any, context: LayerContext) -> None:
        super().__init__(options, context)
        self.changes_input = frozenset(options.targets) & frozenset(ROW)
        self._outputs = frozenset(options.targets) - frozenset(ROW)

    def outputs(self) -> frozenset[str]:
        """See ``LayerAdapter.outputs``."""
        return self._outputs

    def output(self, target: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Scale; see ``LayerAdapter.output``."""
        del x
        return (y * self.weight(f"{target}.scale")).to(y.dtype)

    def input(self, target: str, x: torch.Tensor) -> torch.Tensor:
        """Scale; see ``LayerAdapter.input``."""
        return (x * self.weight(f"{target}.scale")).to(x.dtype)

    def merged_weight(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """See ``LayerAdapter.merged_weight``."""
        if target in self._outputs:
            return weight * self.weight(f"{target}.scale").detach().unsqueeze(1)
        if target in self.changes_input:
            return weight * self.weight(f"{target}.scale").detach()
        return weight
