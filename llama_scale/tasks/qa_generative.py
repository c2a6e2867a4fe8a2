"""Task ``qa_generative``: answers in the model's own words, by a prompt; exact match and F1 as SQuAD defines them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from llama_scale.errors import DataError
from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.examples import Column, Example
from llama_scale.tasks.prompted import FieldName, PromptedOptions, placeholders, template_of
from llama_scale.tasks.qa import answer_texts
from llama_scale.tasks.samples import ANSWERS


class QaGenerativeOptions(PromptedOptions):
    """Options of ``kind: qa_generative``."""

    source: ClassVar[str] = "context"
    added_options: ClassVar[frozenset[str]] = PromptedOptions.added_options | {"template_without_context"}

    question_field: FieldName = Field("question", description="Field with the question.")
    context_field: FieldName = Field("context", description="Field with the text that the answer is taken from.")
    answers_field: FieldName = Field(
        "answer",
        description="Field with the answer, a list of them, or SQuAD's {text, answer_start}: the first trains, the "
        "best one scores.",
    )
    template: Annotated[str, template_of({"question", "context"}, needs="question")] = Field(
        "{context}\n\nQuestion: {question}\nAnswer:",
        description="The prompt; {question} and {context} are replaced. Without {context} no context is read.",
    )
    template_without_context: Annotated[str, template_of({"question"}, needs="question")] | None = Field(
        None,
        description="The prompt of examples whose context is blank or missing, e.g. 'Question: {question}\\nAnswer:'; "
        "without it such an example is an error.",
    )
    no_answer: str | None = Field(
        None, description="What to answer where an example has no answer; without it such an example is an error."
    )

    @model_validator(mode="after")
    def _no_blank_answer(self) -> QaGenerativeOptions:
        if self.no_answer is not None and not self.no_answer.strip():
            raise ValueError("no_answer is blank; name the words that stand for no answer, e.g. unanswerable")
        return self

    @model_validator(mode="after")
    def _used_template(self) -> QaGenerativeOptions:
        if self.template_without_context is not None and not self.uses_context:
            raise ValueError("template_without_context is never used, for template holds no {context}; leave it out")
        return self

    @property
    def uses_context(self) -> bool:
        """Whether the prompt holds the context."""
        return "context" in placeholders(self.template)

    def columns(self) -> tuple[Column, ...]:
        """See ``FileTaskOptions.columns``."""
        question = Column(name=self.question_field, option="question_field")
        needed = self.template_without_context is None
        context = Column(name=self.context_field, option="context_field", required=needed, blank=True)
        return (question, context) if self.uses_context else (question,)

    def read_fields(self, example: Example) -> frozenset[str]:
        """See ``FileTaskOptions.read_fields``: the answers have several forms, which no column describes."""
        return super().read_fields(example) | {self.answers_field}

    def context(self, example: Example) -> str | None:
        """Return the context of an example; None: it has none, or the prompt holds none."""
        text = example.values.get(self.context_field) if self.uses_context else None
        return text.strip() or None if isinstance(text, str) else None

    def check(self, example: Example) -> None:
        """See ``FileTaskOptions.check``: there must be an answer, or words for none."""
        super().check(example)
        if self.uses_context and self.context(example) is None and self.template_without_context is None:
            raise DataError(
                f"{example.where}: field {self.context_field!r} is blank; remove the row, or set "
                "template_without_context to the prompt of questions without a context"
            )
        self.answers(example)

    def answers(self, example: Example) -> list[str]:
        """Return the answers that count as right.

        Raises:
            DataError: There is none, and ``no_answer`` is not set.
        """
        found = answer_texts(example, self.answers_field)
        if found:
            return found
        if self.no_answer is None:
            raise DataError(
                f"{example.where}: field {self.answers_field!r} has no answer; set no_answer to the words to say "
                "then, or remove the row"
            )
        return [self.no_answer]


DESCRIPTOR = TaskDescriptor(
    name="qa_generative",
    options=QaGenerativeOptions,
    implementation="llama_scale.tasks.qa_generative_module:QaGenerative",
    summary="Question answering by a prompt; exact match and F1 as SQuAD defines them.",
    files=QaGenerativeOptions.files,
    sample=ANSWERS,
)
