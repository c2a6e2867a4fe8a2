"""What a prefix is in a layer; copied into exported models, so it imports torch and the interface alone."""

from __future__ import annotations

import torch

from llama_scale.extensions.adapter import LayerAdapter


class Prefix(LayerAdapter):
    """Keys and values that every position attends to."""

    def prefix(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``LayerAdapter.prefix``."""
        return self.weight("keys"), self.weight("values")
