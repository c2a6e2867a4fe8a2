"""One adapter of a checkpoint: its descriptor, its options and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.extensions import discover
from llama_scale.extensions.adapter import LayerAdapter, LayerContext, Tensor, attach
from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions
from llama_scale.extensions.peft import PeftFormat
from llama_scale.layout.parameters import adapter_parameter
from llama_scale.spec.adapters import Adapter
from llama_scale.spec.plugins import import_object


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter and where its tensors are.

    Args:
        entry: The spec's entry.
        descriptor: Of its kind.
        options: Its options, typed.
        names: (layer, name within the layer) -> logical name.
        weights: The checkpoint.
    """

    entry: Adapter
    descriptor: AdapterDescriptor
    options: AdapterOptions
    names: Mapping[tuple[int, str], str]
    weights: Weights

    @property
    def name(self) -> str:
        """Name in the spec."""
        return self.entry.name

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers it touches."""
        return self.options.layer_numbers(self.weights.shape.num_layers)

    @property
    def peft(self) -> PeftFormat | None:
        """How PEFT keeps it, if PEFT has it."""
        if self.descriptor.peft is None:
            return None
        found: PeftFormat = import_object(self.descriptor.peft)
        return found

    def tensors(self) -> dict[tuple[int, str], torch.Tensor]:
        """Return all tensors, fp32, by layer and name."""
        return {key: self.weights.tensor(name) for key, name in self.names.items()}

    def require_merge(self) -> None:
        """Refuse an adapter that no matrix of the base can take in.

        Raises:
            ConvertError: With the kind's reason.
        """
        reason = self.descriptor.not_mergeable(self.options)
        if reason is not None:
            raise ConvertError(
                f"adapter {self.name!r} ({self.entry.kind}) cannot be merged: {reason}; export it with --as mixture"
            )

    def module(self, layer: int) -> LayerAdapter:
        """Return its part in a layer as a module on one process; for merging, so it knows no base weights."""
        sizes = self.weights.shape.model_dump()
        context = LayerContext(
            layer=layer, sizes=sizes, tensor=Tensor(), base_weight=_no_base, seed=_seed(self.weights)
        )
        made: LayerAdapter = discover.implementation(self.descriptor)(self.options, context)
        for (number, short), name in self.names.items():
            if number == layer:
                attach(made, short, nn.Parameter(self.weights.tensor(name), requires_grad=False))
        return made


def _no_base(target: str) -> torch.Tensor:
    raise ConvertError(
        f"merged_weight gets the matrix of {target} as its argument; context.base_weight is not set then"
    )


def _seed(weights: Weights) -> int:
    record = weights.manifest.extensions
    return 0 if record is None else record.seed


def stored_adapters(weights: Weights) -> tuple[StoredAdapter, ...]:
    """Return the adapters of a checkpoint, in the spec's order.

    Raises:
        PluginError: The distribution that brings a kind is not installed, or broken.
    """
    record = weights.manifest.extensions
    return () if record is None else tuple(_stored(weights, entry) for entry in record.adapters)


def _stored(weights: Weights, entry: Adapter) -> StoredAdapter:
    descriptor = discover.adapter(entry.kind)
    options = discover.read_options(descriptor, entry.options)
    names: dict[tuple[int, str], str] = {}
    for layer in options.layer_numbers(weights.shape.num_layers):
        prefix = adapter_parameter(layer, entry.name, "")
        names |= {(layer, name.removeprefix(prefix)): name for name in weights.extra if name.startswith(prefix)}
    return StoredAdapter(entry=entry, descriptor=descriptor, options=options, names=names, weights=weights)


def find_adapter(weights: Weights, name: str | None) -> StoredAdapter:
    """Return the adapter that a user names; the only one if none is named.

    Raises:
        ConvertError: The checkpoint has no such adapter, or several and none is named.
    """
    found = {adapter.name: adapter for adapter in stored_adapters(weights)}
    if not found:
        raise ConvertError(f"checkpoint {weights.folder} has no adapters; export it without --as and --adapter")
    if name is None and len(found) > 1:
        raise ConvertError(
            f"checkpoint {weights.folder} has several adapters; choose one with --adapter: {', '.join(found)}"
        )
    if name is not None and name not in found:
        raise ConvertError(f"checkpoint {weights.folder} has no adapter {name!r}; it has {', '.join(found)}")
    return found[name] if name is not None else next(iter(found.values()))


def plain_options(options: Any) -> dict[str, Any]:
    """Return options as JSON-able data by the names of their fields, as an implementation reads them."""
    data: dict[str, Any] = options.model_dump(mode="json", by_alias=False)
    return data
