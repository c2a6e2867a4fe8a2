"""Task ``qa_extractive``: the answer is a span of the context; scores of start and end by a head of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from llama_scale.errors import DataError
from llama_scale.extensions.api import ExtraParameter, TaskDescriptor
from llama_scale.extensions.examples import Column, Example, FileTaskOptions
from llama_scale.spec.base import PositiveInt
from llama_scale.spec.model import ModelShape
from llama_scale.tasks.prompted import FieldName
from llama_scale.tasks.qa import answer_spans
from llama_scale.tasks.samples import ANSWERS


class QaExtractiveOptions(FileTaskOptions):
    """Options of ``kind: qa_extractive``."""

    refuses_unread: ClassVar[bool] = True

    question_field: FieldName = Field("question", description="Field with the question.")
    context_field: FieldName = Field("context", description="Field with the text that holds the answer.")
    answers_field: FieldName = Field(
        "answer", description="Field with the answer, a list of them, or SQuAD's {text, answer_start}."
    )
    answer_start_field: FieldName = Field(
        "answer_start",
        description="Field with the answers' first characters; without it an answer is its first occurrence.",
    )
    stride: PositiveInt = Field(
        64, description="Tokens that two windows of a long context share; answers up to that length are whole in one."
    )
    max_question_tokens: PositiveInt = Field(64, description="A longer question is an error.")
    max_answer_tokens: PositiveInt = Field(64, description="Longest answer that is considered.")
    n_best: PositiveInt = Field(20, description="Best starts and ends of a window that are combined.")
    unanswerable: bool = Field(
        False, description="Whether questions may have no answer (SQuAD 2.0), and predictions may say so."
    )
    null_threshold: float = Field(
        0.0, description="No answer is predicted when its score exceeds the best answer's by more than this."
    )

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        return (
            Column(name=self.question_field, option="question_field"),
            Column(name=self.context_field, option="context_field"),
        )

    def read_fields(self, example: Example) -> frozenset[str]:
        """See ``FileTaskOptions.read_fields``: the answers have several forms, which no column describes."""
        return super().read_fields(example) | {self.answers_field, self.answer_start_field}

    def check(self, example: Example) -> None:
        """See ``FileTaskOptions.check``: the answers must be in the context."""
        super().check(example)
        self.spans(example)

    def faults(self, seq_length: int) -> Iterator[str]:
        """See ``FileTaskOptions.faults``."""
        room = seq_length - self.max_question_tokens - FRAME_TOKENS
        if room <= self.stride:
            yield (
                f"data.seq_length={seq_length} leaves {room} tokens for the context beside max_question_tokens="
                f"{self.max_question_tokens}, and windows that share stride={self.stride} need more than that: use a "
                "longer seq_length, or a smaller stride or max_question_tokens"
            )

    def spans(self, example: Example) -> list[tuple[int, int]]:
        """Return the characters of each answer in the context; none if the question has no answer.

        Raises:
            DataError: An answer is not in its context, or there is none and ``unanswerable`` is false.
        """
        found = answer_spans(
            example,
            field=self.answers_field,
            start_field=self.answer_start_field,
            context=example[self.context_field],
        )
        if not found and not self.unanswerable:
            raise DataError(
                f"{example.where}: field {self.answers_field!r} has no answer; set unanswerable: true, or remove it"
            )
        return found


FRAME_TOKENS = 32
"""Tokens of a window beside question and context, at most: the words that part them and the end."""


def _parameters(options: QaExtractiveOptions, shape: ModelShape) -> tuple[ExtraParameter, ...]:
    del options
    return (
        ExtraParameter(name="weight", shape=(2, shape.hidden_size), init="normal", std=0.02),
        ExtraParameter(name="bias", shape=(2,)),
    )


DESCRIPTOR = TaskDescriptor(
    name="qa_extractive",
    options=QaExtractiveOptions,
    implementation="llama_scale.tasks.qa_extractive_module:QaExtractive",
    summary="Question answering by spans of the context; exact match and F1 as SQuAD defines them.",
    head="own",
    parameters=_parameters,
    files=QaExtractiveOptions.files,
    sample=ANSWERS,
)
