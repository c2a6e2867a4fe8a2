"""Implementation of the task ``qa_generative``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_scale.extensions.examples import Example
from llama_scale.tasks.prompted_module import PromptedTask
from llama_scale.tasks.qa_generative import QaGenerativeOptions
from llama_scale.tasks.text_scores import squad


class QaGenerative(PromptedTask):
    """A question, perhaps its context, and the answer."""

    options: QaGenerativeOptions

    def values(self, example: Example) -> dict[str, str]:
        """See ``PromptedTask.values``."""
        values = {"question": example[self.options.question_field].strip()}
        context = self.options.context(example)
        return values if context is None else {**values, "context": context}

    def template_of(self, values: Mapping[str, str]) -> str:
        """See ``PromptedTask.template_of``."""
        shorter = self.options.template_without_context
        return self.template if "context" in values or shorter is None else shorter

    def references(self, example: Example) -> list[str]:
        """See ``PromptedTask.references``."""
        return self.options.answers(example)

    def score(self, prediction: str, references: Sequence[str]) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """See ``PromptedTask.score``: exact match and F1."""
        return squad(prediction, references), {}
