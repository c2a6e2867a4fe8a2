"""Bottleneck adapters: a small MLP after attention and feed-forward block (Houlsby et al. 2019, arXiv:1902.00751).

Every tensor parallel rank holds and computes the whole of it. Cutting it would save ``4 * hidden * size`` operations a
token on each rank and cost an all-reduce of ``hidden`` numbers a token, as much as the block itself sends: at the
sizes that such adapters have, sending takes longer. With sequence parallelism each rank computes its own part of the
sequence, and nothing is computed twice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter
from llama_scale.spec.base import PositiveInt
from llama_scale.spec.model import ModelShape


class BottleneckOptions(AdapterOptions):
    """Options of ``kind: bottleneck``."""

    size: PositiveInt = Field(64, description="Width of the bottleneck.")
    after: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = Field(
        ("attention", "mlp"), description="Blocks that one is put behind (mlp alone: Pfeiffer et al. 2020)."
    )
    activation: Literal["gelu", "relu", "silu"] = Field("gelu", description="Function inside the bottleneck.")


def bottleneck_parameters(options: BottleneckOptions, shape: ModelShape, layer: int) -> tuple[ExtraParameter, ...]:
    """Return the matrices and biases of one layer: the second matrix is zero, so it changes nothing at the start."""
    del layer
    hidden, size = shape.hidden_size, options.size
    rows = []
    for block in ("attention", "mlp"):
        if block in options.after:
            rows += [
                ExtraParameter(
                    name=f"{block}.down", shape=(size, hidden), init="kaiming_uniform", partial_gradient=True
                ),
                ExtraParameter(name=f"{block}.down_bias", shape=(size,), partial_gradient=True),
                ExtraParameter(name=f"{block}.up", shape=(hidden, size), partial_gradient=True),
                ExtraParameter(name=f"{block}.up_bias", shape=(hidden,), partial_gradient=True),
            ]
    return tuple(rows)


DESCRIPTOR = AdapterDescriptor(
    name="bottleneck",
    options=BottleneckOptions,
    parameters=bottleneck_parameters,
    implementation="llama_scale.adapters.bottleneck_module:Bottleneck",
    summary="a small MLP after attention and feed-forward blocks",
    not_mergeable=lambda _options: (
        "its activation function lies between the base's matrices, so none of them can hold it"
    ),
)
