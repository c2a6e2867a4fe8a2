"""Section ``recompute``: activations that are computed again in the backward pass instead of stored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PositiveInt, Section


class NoRecompute(Section):
    """Store all activations."""

    kind: Literal["none"]


class SelectiveRecompute(Section):
    """Recompute the attention core only (Korthikanti et al. 2022, arXiv:2205.05198)."""

    kind: Literal["selective"]


class FullRecompute(Section):
    """Store only the inputs of layers."""

    kind: Literal["full"]
    method: Literal["uniform", "block"] = Field(
        "uniform",
        description="uniform: groups of `layers` layers; block: the first `layers` layers of each stage.",
    )
    layers: PositiveInt = Field(1, description="See method.")


Recompute = Annotated[NoRecompute | SelectiveRecompute | FullRecompute, Field(discriminator="kind")]
