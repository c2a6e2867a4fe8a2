"""LoRA: ``y = W x + scale * B A x`` (Hu et al. 2021, arXiv:2106.09685), with rsLoRA's scale and DoRA as options.

Division by tensor parallelism: a column parallel layer has A whole and B cut by outputs, a row parallel one A cut by
inputs and B whole. What is summed over the group has ``rank`` numbers a token, not ``hidden`` many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter
from llama_scale.extensions.linears import LINEARS, ROW, Target, linear_size
from llama_scale.spec.base import PositiveFloat, PositiveInt
from llama_scale.spec.model import ModelShape


class LoraOptions(AdapterOptions):
    """Options of ``kind: lora``; the names in brackets are PEFT's."""

    rank: PositiveInt = Field(8, description="Rank of the update (r).")
    alpha: PositiveFloat = Field(16.0, description="The update is scaled by alpha / rank (lora_alpha).")
    targets: Literal["all-linear"] | Annotated[tuple[Target, ...], Field(min_length=1)] = Field(
        "all-linear", description="Linear layers that get an update (target_modules)."
    )
    ranks: dict[Target, PositiveInt] = Field({}, description="Ranks of single targets (rank_pattern).")
    alphas: dict[Target, PositiveFloat] = Field({}, description="Alphas of single targets (alpha_pattern).")
    rs_lora: bool = Field(
        False, description="Scale by alpha / sqrt(rank), Kalajdzievski 2023, arXiv:2312.03732 (use_rslora)."
    )
    dora: bool = Field(
        False, description="Train each output's magnitude beside its direction, Liu et al. 2024, arXiv:2402.09353."
    )
    dropout: float = Field(0.0, description="Only 0: without dropout, results do not depend on the layout.")

    @field_validator("targets")
    @classmethod
    def _no_target_twice(cls, value: str | tuple[Target, ...]) -> str | tuple[Target, ...]:
        if not isinstance(value, str) and len(set(value)) < len(value):
            raise ValueError(f"targets={list(value)} names a layer twice")
        return value

    @field_validator("ranks", "alphas")
    @classmethod
    def _of_targets(cls, value: dict[Target, float], info: ValidationInfo) -> dict[Target, float]:
        targets = info.data.get("targets", "all-linear")
        others = [] if targets == "all-linear" else sorted(set(value) - set(targets))
        if others:
            raise ValueError(f"{info.field_name} names {', '.join(others)}, which targets={list(targets)} leaves out")
        return value

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                f"dropout={value}: adapters train without dropout, so that losses are equal on every layout; remove it"
            )
        return value

    @property
    def chosen(self) -> tuple[Target, ...]:
        """The targets, in the order of the forward pass."""
        return LINEARS if self.targets == "all-linear" else tuple(t for t in LINEARS if t in self.targets)

    def rank_of(self, target: Target) -> int:
        """Return the rank of a target's update."""
        return self.ranks.get(target, self.rank)


def lora_parameters(options: LoraOptions, shape: ModelShape, layer: int) -> tuple[ExtraParameter, ...]:
    """Return the matrices of one layer: the update is zero at the start, for B is."""
    del layer
    return tuple(parameter for target in options.chosen for parameter in _of_target(options, shape, target))


def _of_target(options: LoraOptions, shape: ModelShape, target: Target) -> Iterator[ExtraParameter]:
    outputs, inputs = linear_size(shape, target)
    rank = options.rank_of(target)
    row = target in ROW
    # With sequence parallelism, A of a column parallel layer sees this rank's part of the sequence, and so does B of a
    # row parallel one.
    yield ExtraParameter(
        name=f"{target}.lora_A",
        shape=(rank, inputs),
        tp_dim=1 if row else None,
        init="kaiming_uniform",
        partial_gradient=not row,
    )
    yield ExtraParameter(
        name=f"{target}.lora_B", shape=(outputs, rank), tp_dim=None if row else 0, init="zeros", partial_gradient=row
    )
    if options.dora:
        # The magnitude less the base's own row norm: 0 at the start whatever the base, with the same gradient.
        yield ExtraParameter(
            name=f"{target}.magnitude_change",
            shape=(outputs,),
            tp_dim=None if row else 0,
            init="zeros",
            partial_gradient=row,
        )


DESCRIPTOR = AdapterDescriptor(
    name="lora",
    options=LoraOptions,
    parameters=lora_parameters,
    implementation="llama_scale.adapters.lora_module:Lora",
    summary="low-rank updates of linear layers; rsLoRA, DoRA, a rank per target",
    not_mergeable=lambda _options: None,
    peft="llama_scale.adapters.lora_peft:FORMAT",
)
