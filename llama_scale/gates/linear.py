"""A linear gate: one score per adapter, read off the base model's last hidden state."""

from __future__ import annotations

from llama_scale.extensions.api import ExtraParameter, GateDescriptor, GateOptions
from llama_scale.spec.model import ModelShape


class LinearGateOptions(GateOptions):
    """Options of ``gate: linear``: none."""


def gate_parameters(options: LinearGateOptions, shape: ModelShape, adapters: int) -> tuple[ExtraParameter, ...]:
    """Return weight and bias; both are zero at the start, so that all adapters weigh the same."""
    del options
    return (
        ExtraParameter(name="weight", shape=(adapters, shape.hidden_size)),
        ExtraParameter(name="bias", shape=(adapters,)),
    )


DESCRIPTOR = GateDescriptor(
    name="linear",
    options=LinearGateOptions,
    parameters=gate_parameters,
    implementation="llama_scale.gates.linear_module:LinearGate",
    summary="one linear layer on the base model's last hidden state",
)
