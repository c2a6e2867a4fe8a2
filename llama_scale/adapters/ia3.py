"""IA3: learned factors on keys, values and the inner activations of the MLP (Liu et al. 2022, arXiv:2205.05638).

Each factor is as long as what it scales and is cut like it, so no rank needs another's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter
from llama_scale.extensions.linears import linear_size
from llama_scale.spec.model import ModelShape

Scaled = Literal["k_proj", "v_proj", "down_proj"]


class Ia3Options(AdapterOptions):
    """Options of ``kind: ia3``."""

    targets: Annotated[tuple[Scaled, ...], Field(min_length=1)] = Field(
        ("k_proj", "v_proj", "down_proj"),
        description="What is scaled: the outputs of k_proj and v_proj, the input of down_proj (PEFT: target_modules, "
        "with down_proj in feedforward_modules).",
    )

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, value: tuple[Scaled, ...]) -> tuple[Scaled, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"targets={list(value)} names a layer twice")
        return value


def ia3_parameters(options: Ia3Options, shape: ModelShape, layer: int) -> tuple[ExtraParameter, ...]:
    """Return the factors of one layer: ones, which change nothing."""
    del layer
    return tuple(
        ExtraParameter(
            name=f"{target}.scale",
            shape=(linear_size(shape, target)[1 if target == "down_proj" else 0],),
            tp_dim=0,
            init="ones",
        )
        for target in ("k_proj", "v_proj", "down_proj")
        if target in options.targets
    )


DESCRIPTOR = AdapterDescriptor(
    name="ia3",
    options=Ia3Options,
    parameters=ia3_parameters,
    implementation="llama_scale.adapters.ia3_module:Ia3",
    summary="learned factors on keys, values and the MLP's inner activations",
    not_mergeable=lambda _options: None,
    peft="llama_scale.adapters.ia3_peft:FORMAT",
)
