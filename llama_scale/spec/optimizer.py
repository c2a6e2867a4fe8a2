"""Section ``optimizer``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import NonNegativeFloat, PositiveFloat, Section

Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class AdamW(Section):
    """AdamW with decoupled weight decay; norms' weights are not decayed."""

    kind: Literal["adamw"] = Field("adamw", description="The optimizer.")
    lr: PositiveFloat = Field(3e-4, description="Peak learning rate.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Decay of the first and second moment, each < 1.")
    eps: PositiveFloat = Field(1e-8, description="Term added to the denominator.")
    weight_decay: NonNegativeFloat = Field(0.1, description="Decoupled weight decay of matrices.")
    clip_grad_norm: NonNegativeFloat = Field(1.0, description="Clip the global gradient norm to this; 0 = never.")


Optimizer = AdamW
