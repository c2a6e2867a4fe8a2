"""Implementation of the task ``translation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Outcome
from llama_scale.tasks.prompted_module import PromptedTask
from llama_scale.tasks.text_scores import CorpusMetric
from llama_scale.tasks.translation import TranslationOptions, language_name


class Translation(PromptedTask):
    """A text and its translation."""

    options: TranslationOptions

    def values(self, example: Example) -> dict[str, str]:
        """See ``PromptedTask.values``."""
        return {
            "source": example[self.options.source_field].strip(),
            "source_language": language_name(self.options.languages.source),
            "target_language": language_name(self.options.languages.target),
        }

    def references(self, example: Example) -> list[str]:
        """See ``PromptedTask.references``."""
        found = example[self.options.target_field]
        return [found] if isinstance(found, str) else list(found)

    def score(self, prediction: str, references: Sequence[str]) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """See ``PromptedTask.score``: BLEU and chrF are of the corpus, from these parts."""
        return {}, {name: metric.parts(prediction, references) for name, metric in self._metrics.items()}

    def corpus_scores(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """See ``Task.corpus_scores``."""
        return {
            name: metric.score([outcome.parts[name] for outcome in outcomes]) if outcomes else 0.0
            for name, metric in self._metrics.items()
        }

    @cached_property
    def _metrics(self) -> dict[str, CorpusMetric]:
        tokenizer = self.options.sacrebleu_tokenizer()
        return {"bleu": CorpusMetric("bleu", tokenizer=tokenizer), "chrf": CorpusMetric("chrf")}
