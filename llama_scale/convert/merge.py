"""An adapter added into the base's matrices, one at a time, so that a plain LLaMA computes what both compute."""

from __future__ import annotations

import torch

from llama_scale.convert.adapters import StoredAdapter
from llama_scale.convert.ledger import Ledger
from llama_scale.convert.mapping import HfTensor
from llama_scale.extensions.adapter import LayerAdapter
from llama_scale.extensions.linears import LINEARS
from llama_scale.extensions.peft import module_path


class Merger:
    """Give the matrices that an adapter changes; ``LayerAdapter.merged_weight`` says how.

    Args:
        adapter: The adapter.

    Raises:
        ConvertError: It cannot be merged; the message has the kind's reason.
    """

    def __init__(self, adapter: StoredAdapter) -> None:
        adapter.require_merge()
        self.adapter = adapter
        self._places = {
            f"{module_path(layer, target)}.weight": (layer, target) for layer in adapter.layers for target in LINEARS
        }
        self._layer = -1
        self._module: LayerAdapter | None = None
        self._entered: set[int] = set()

    def touches(self, name: str) -> bool:
        """Tell whether the adapter changes a Hugging Face tensor."""
        if name not in self._places:
            return False
        layer, target = self._places[name]
        module = self._module_of(layer)
        return target in module.outputs() | module.changes_input

    def tensor(self, tensor: HfTensor, *, dtype: torch.dtype, ledger: Ledger | None = None) -> torch.Tensor:
        """Return a merged tensor: added up in fp32, then rounded."""
        layer, target = self._places[tensor.name]
        weight = self.adapter.weights.hf_tensor(tensor, dtype=torch.float32, ledger=ledger)
        merged = self._module_of(layer).merged_weight(target, weight)
        if ledger is not None and layer not in self._entered:
            self._entered.add(layer)
            for (number, _), name in self.adapter.names.items():
                if number == layer:
                    ledger.merge(name)
        return merged.to(dtype).contiguous()

    def _module_of(self, layer: int) -> LayerAdapter:
        """Return the adapter's part in a layer; only the last one asked for is kept."""
        if self._module is None or layer != self._layer:
            self._layer, self._module = layer, self.adapter.module(layer)
        return self._module
