"""VeRA: vectors that scale random matrices which all layers share (Kopiczko et al. 2023, arXiv:2310.11454)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter, ModelShape
from llama_scale.extensions.linears import LINEARS, ROW, Target, linear_size


class VeraOptions(AdapterOptions):
    """Options of ``kind: vera``."""

    rank: int = Field(64, gt=0, description="Rows of A and columns of B.")
    targets: Literal["all-linear"] | Annotated[tuple[Target, ...], Field(min_length=1)] = Field(
        ("q_proj", "v_proj"), description="Linear layers that are changed."
    )
    d_initial: float = Field(0.1, gt=0, allow_inf_nan=False, description="Initial value of every element of d.")

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, value: str | tuple[Target, ...]) -> str | tuple[Target, ...]:
        if not isinstance(value, str) and len(set(value)) < len(value):
            raise ValueError(f"targets={list(value)} names a layer twice")
        return value


def vera_parameters(options: VeraOptions, shape: ModelShape, layer: int) -> tuple[ExtraParameter, ...]:
    """Return the vectors of one layer; b is zero, so that a fresh adapter changes nothing."""
    del layer
    chosen = LINEARS if options.targets == "all-linear" else options.targets
    return tuple(parameter for target in LINEARS if target in chosen for parameter in _vectors(options, shape, target))


def _vectors(options: VeraOptions, shape: ModelShape, target: Target) -> Iterator[ExtraParameter]:
    outputs, _ = linear_size(shape, target)
    row = target in ROW
    # d is stored relative to d_initial. With sequence parallelism it scales this rank's part of the sequence.
    yield ExtraParameter(name=f"{target}.d", shape=(options.rank,), init="ones", partial_gradient=True)
    # b lies along the outputs, which a column parallel layer divides and a row parallel one does not.
    yield ExtraParameter(name=f"{target}.b", shape=(outputs,), tp_dim=None if row else 0, partial_gradient=row)


DESCRIPTOR = AdapterDescriptor(
    name="vera",
    options=VeraOptions,
    parameters=vera_parameters,
    implementation="llama_scale_vera.layer:Vera",
    summary="vectors that scale random matrices which all layers share",
    not_mergeable=lambda _options: None,
)
