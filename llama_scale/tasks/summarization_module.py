"""Implementation of the task ``summarization``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_scale.extensions.examples import Example
from llama_scale.tasks.prompted_module import PromptedTask
from llama_scale.tasks.summarization import SummarizationOptions
from llama_scale.tasks.text_scores import rouge


class Summarization(PromptedTask):
    """A document and its summary."""

    options: SummarizationOptions

    def values(self, example: Example) -> dict[str, str]:
        """See ``PromptedTask.values``."""
        return {"document": example[self.options.document_field].strip()}

    def references(self, example: Example) -> list[str]:
        """See ``PromptedTask.references``."""
        found = example[self.options.summary_field]
        return [found] if isinstance(found, str) else list(found)

    def score(self, prediction: str, references: Sequence[str]) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """See ``PromptedTask.score``: ROUGE-1, -2, -L."""
        return rouge(prediction, references, stemmer=self.options.stemmer), {}
