"""Section ``data``: the token files, how they are mixed and cut into samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llama_scale.spec.base import NonNegativeFloat, PathStr, PositiveFloat, PositiveInt, Section


class BlendPart(Section):
    """One token file of the blend."""

    path: PathStr = Field(description="Prefix of a .bin/.idx pair (`llama-scale data build` writes one).")
    weight: PositiveFloat = Field(1.0, description="Share of samples, relative to the other parts' weights.")


class Split(Section):
    """Relative sizes of the parts a token file is cut into, by document, in this order."""

    train: PositiveFloat = Field(98.0, description="Share for training.")
    validation: NonNegativeFloat = Field(1.0, description="Share for validation.")
    test: NonNegativeFloat = Field(1.0, description="Share held back for tests.")


class IndexedData(Section):
    """Token files in Megatron-Core's IndexedDataset format."""

    kind: Literal["indexed"]
    blend: tuple[BlendPart, ...] = Field(min_length=1, description="One or more token files with their weights.")
    split: Split = Field(Split(), description="Relative sizes of train, validation and test.")
    seq_length: PositiveInt = Field(description="Tokens per sample (s in formulas).")
    isolate_documents: bool = Field(
        False,
        description="Forbid attention across the documents packed into one sample, and restart positions at each.",
    )


Data = IndexedData
"""The kinds of data; task data (JSONL) joins this union with the task heads."""
