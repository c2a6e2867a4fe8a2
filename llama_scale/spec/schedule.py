"""Section ``schedule``: the learning rate over the steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import NonNegativeInt, PositiveInt, Probability, Section


class _WithWarmup(Section):
    warmup_steps: NonNegativeInt = Field(0, description="Steps over which the rate rises linearly from 0.")


class ConstantSchedule(_WithWarmup):
    """Warm-up, then the peak rate."""

    kind: Literal["constant"]


class CosineSchedule(_WithWarmup):
    """Warm-up, then half a cosine down to min_ratio x lr at the last step."""

    kind: Literal["cosine"]
    min_ratio: Probability = Field(0.1, description="Final learning rate as a share of the peak.")


class WsdSchedule(_WithWarmup):
    """Warm-up, stable, decay (WSD): constant until the last decay_steps, then down to min_ratio x lr."""

    kind: Literal["wsd"]
    decay_steps: PositiveInt = Field(description="Length of the final decay, in steps.")
    decay: Literal["linear", "sqrt"] = Field("linear", description="Form of the decay: linear, or 1 - sqrt.")
    min_ratio: Probability = Field(0.0, description="Final learning rate as a share of the peak.")


Schedule = Annotated[ConstantSchedule | CosineSchedule | WsdSchedule, Field(discriminator="kind")]
