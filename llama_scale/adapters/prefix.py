"""Prefix tuning: learned keys and values before every sequence, in each layer (Li and Liang 2021, arXiv:2101.00190).

They are cut over key/value heads like the layer's own. They carry no rotary embedding and belong to every document:
with isolated documents each of them sees the prefix, and still nothing of the others.
"""

from __future__ import annotations

from pydantic import Field

from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter
from llama_scale.spec.base import PositiveFloat, PositiveInt
from llama_scale.spec.model import ModelShape


class PrefixOptions(AdapterOptions):
    """Options of ``kind: prefix``."""

    length: PositiveInt = Field(16, description="Positions in front of each sequence (PEFT: num_virtual_tokens).")
    init_std: PositiveFloat = Field(0.02, description="Standard deviation of the initial keys; values begin at 0.")


def prefix_parameters(options: PrefixOptions, shape: ModelShape, layer: int) -> tuple[ExtraParameter, ...]:
    """Return keys and values of one layer."""
    del layer
    size = (options.length, shape.num_kv_heads, shape.head_dim)
    return (
        ExtraParameter(name="keys", shape=size, tp_dim=1, init="normal", std=options.init_std),
        ExtraParameter(name="values", shape=size, tp_dim=1),
    )


DESCRIPTOR = AdapterDescriptor(
    name="prefix",
    options=PrefixOptions,
    parameters=prefix_parameters,
    implementation="llama_scale.adapters.prefix_module:Prefix",
    summary="learned keys and values in front of every sequence, in every layer",
    changes_at_start="attention is shared with the prefix from the start, whatever its values are",
    not_mergeable=lambda _options: "it adds positions to attend to, which no matrix of the base can hold",
)
