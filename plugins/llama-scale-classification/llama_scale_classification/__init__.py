"""Text classification: one label a text, from a linear head on the last token's hidden state."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llama_scale.extensions.api import ExtraParameter, ModelShape, TaskDescriptor
from llama_scale.extensions.examples import Column, DataError, Example, FileTaskOptions


class ClassificationOptions(FileTaskOptions):
    """Options of ``kind: classification``."""

    labels: Annotated[tuple[str, ...], Field(min_length=2)] = Field(description="All labels, in the head's order.")
    text_field: str = Field("text", min_length=1, description="Field with the text.")
    label_field: str = Field("label", min_length=1, description="Field with the label.")
    overlong: Literal["truncate_right", "error"] = Field(
        "truncate_right", description="Texts longer than a row: cut their end off, or stop."
    )

    @field_validator("labels")
    @classmethod
    def _no_label_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"labels={list(value)} names a label twice")
        return value

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        return (
            Column(name=self.text_field, option="text_field"),
            Column(name=self.label_field, option="label_field"),
        )

    def check(self, example: Example) -> None:
        """See ``FileTaskOptions.check``: the label must be one of those that the options list."""
        super().check(example)
        if example[self.label_field] not in self.labels:
            raise DataError(
                f"{example.where}: the label {example[self.label_field]!r} is none of {', '.join(self.labels)}; add it "
                "to the option labels, or mend the row"
            )


def _head(options: ClassificationOptions, shape: ModelShape) -> tuple[ExtraParameter, ...]:
    return (
        ExtraParameter(name="weight", shape=(len(options.labels), shape.hidden_size), init="normal", std=0.02),
        ExtraParameter(name="bias", shape=(len(options.labels),)),
    )


DESCRIPTOR = TaskDescriptor(
    name="classification",
    options=ClassificationOptions,
    implementation="llama_scale_classification.task:Classification",
    summary="one label a text; accuracy, macro-F1",
    head="own",
    parameters=_head,
    files=ClassificationOptions.files,
    sample=(
        {"text": "a fine day at the sea", "label": "good"},
        {"text": "the worst meal of my life", "label": "bad"},
        {"text": "they sang and danced", "label": "good"},
        {"text": "it broke at once", "label": "bad"},
    ),
)
