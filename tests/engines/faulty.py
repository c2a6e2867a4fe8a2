"""An adapter for simulations, right or with one fault that no validation can see, as a distribution of its own."""

from __future__ import annotations

from pathlib import Path

from tests.distributions import install

_DESCRIPTOR = '''
from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter


class Options(AdapterOptions):
    """No options."""


def parameters(options, shape, layer):
    size = shape.num_heads * shape.head_dim
    return (ExtraParameter(name="gain", init="ones", PARAMETER),)


DESCRIPTOR = AdapterDescriptor(
    name="gain",
    options=Options,
    parameters=parameters,
    implementation="gain_module:Gain",
    summary="for tests",
    not_mergeable=lambda options: None,
)
'''

_MODULE = '''
import torch

from llama_scale.extensions.adapter import LayerAdapter


class Gain(LayerAdapter):
    """Scales queries."""

    calls = 0

    def outputs(self):
        return frozenset({"q_proj"})

    def output(self, target, x, y):
        CHANGE
        return (y * self.weight("gain")).to(y.dtype)

    def merged_weight(self, target, weight):
        return MERGED
'''

_RIGHT = {
    "PARAMETER": "shape=(size,), tp_dim=0",
    "CHANGE": "pass",
    "MERGED": "weight * self.weight('gain').unsqueeze(1) if target == 'q_proj' else weight",
}
FAULTS: dict[str, dict[str, str]] = {
    "none": {},
    # The parameter is not cut, and what it scales is.
    "shape": {"PARAMETER": "shape=(size,)"},
    # Each rank has the gradient of its own heads only, and nobody adds them up.
    "unreduced": {"PARAMETER": "shape=(1,)"},
    # What was counted is in no checkpoint.
    "forgetful": {"CHANGE": "self.calls += self.training; y = y * (1 + 0.01 * self.calls)"},
    "merge": {"MERGED": "weight"},
}


def install_gain(site: Path, fault: str) -> None:
    """Install the adapter ``gain`` with a fault of ``FAULTS`` into a folder for sys.path."""
    descriptor, module = _DESCRIPTOR, _MODULE
    for name, text in (_RIGHT | FAULTS[fault]).items():
        descriptor, module = descriptor.replace(name, text), module.replace(name, text)
    install(
        site,
        "gain",
        points={"llama_scale.adapters": {"gain": "gain_descriptor:DESCRIPTOR"}},
        modules={"gain_descriptor": descriptor, "gain_module": module},
    )
