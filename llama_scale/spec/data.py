"""Section ``data``: token files, how they are mixed and cut into samples, or the examples of tasks."""

from __future__ import annotations

from typing import Annotated, Literal

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

    @property
    def sizes(self) -> tuple[float, float, float]:
        """The three, in order."""
        return self.train, self.validation, self.test


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


class TaskData(Section):
    """The examples of the run's tasks, made into token sequences when the run starts."""

    kind: Literal["tasks"]
    seq_length: PositiveInt = Field(description="Tokens per row (s in formulas): the longest sequence of an example.")
    packing: bool = Field(
        True,
        description="Join several examples in a row, where the task allows it; they never see each other.",
    )


Data = Annotated[IndexedData | TaskData, Field(discriminator="kind")]
"""The kinds of data."""
