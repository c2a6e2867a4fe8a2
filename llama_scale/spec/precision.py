"""Section ``precision``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from llama_scale.spec.base import Section


class Precision(Section):
    """Number formats of the computation."""

    compute: str = Field(
        "bf16",
        description="Format of weights and activations: fp32 or bf16 (with fp32 master weights).",
        json_schema_extra={"enum": ["fp32", "bf16"]},
    )
    gradients: Literal["fp32", "bf16"] = Field(
        "fp32", description="Format in which gradients are accumulated and reduced."
    )

    @field_validator("compute")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == "fp16":
            raise ValueError(
                "compute='fp16' is refused: it needs loss scaling and overflows in LLaMA's activations; use bf16, "
                "or fp32 where the device has no bf16"
            )
        if value not in ("fp32", "bf16"):
            raise ValueError(f"compute={value!r} is not a known format; use fp32 or bf16")
        return value
