"""Scores of texts: ROUGE by rouge-score, BLEU and chrF by sacrebleu, exact match and F1 as SQuAD defines them."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_scale.errors import DataError

INSTALL = "pip install 'llama-scale[tasks]'"


@functools.cache
def _rouge(stemmer: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise DataError(f"ROUGE needs the package rouge-score: {INSTALL}") from error
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer)


def rouge(prediction: str, references: Sequence[str], *, stemmer: bool) -> dict[str, float]:
    """Return ROUGE-1, -2 and -L (F-measure, 0 to 100), each the best over the references.

    rouge-score knows words of Latin letters and digits only.
    """
    scorer = _rouge(stemmer)
    found = [scorer.score(reference, prediction) for reference in references]
    return {name: 100.0 * max(score[name].fmeasure for score in found) for name in ("rouge1", "rouge2", "rougeL")}


def normalize_answer(text: str) -> str:
    """Lower-case, drop punctuation, articles and extra spaces, as SQuAD's evaluation script 2.0 does.

    >>> normalize_answer("The  Capital, Paris!")
    'capital paris'
    """
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


_PUNCTUATION = frozenset(string.punctuation)


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if both are equal after normalisation, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of the words that both share after normalisation; without words on a side, 1 if on both, else 0."""
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    # 2PR / (P + R) with P = common / ours, R = common / theirs
    return 2 * common / (len(ours) + len(theirs))


def squad(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return exact match and F1 (0 to 100), each the best over the references; no reference: no answer is right."""
    right = references or [""]
    return {
        "exact_match": 100.0 * max(exact_match(prediction, reference) for reference in right),
        "f1": 100.0 * max(token_f1(prediction, reference) for reference in right),
    }


class CorpusMetric:
    """BLEU or chrF of a corpus from numbers that add up over its sentences, so that bootstrapping is cheap.

    Args:
        name: ``bleu`` or ``chrf``.
        tokenizer: sacrebleu's tokenizer, for BLEU.
    """

    def __init__(self, name: str, *, tokenizer: str = "13a") -> None:
        try:
            from sacrebleu.metrics import BLEU, CHRF
        except ImportError as error:
            raise DataError(f"BLEU and chrF need the package sacrebleu: {INSTALL}") from error
        makers: Mapping[str, Callable[[], Any]] = {"bleu": lambda: BLEU(tokenize=tokenizer), "chrf": CHRF}
        try:
            self._metric = makers[name]()
        except (ImportError, RuntimeError) as error:
            raise DataError(f"sacrebleu's tokenizer {tokenizer} cannot be used: {error}") from error

    def parts(self, prediction: str, references: Sequence[str]) -> list[int]:
        """Return one sentence's numbers."""
        # What sacrebleu's own significance tests use; it has no public name for it.
        found = self._metric._extract_corpus_statistics([prediction], [[reference] for reference in references])
        return [int(number) for number in found[0]]

    def score(self, parts: Sequence[Sequence[int]]) -> float:
        """Return the corpus's score (0 to 100) from its sentences' numbers."""
        total = [sum(numbers) for numbers in zip(*parts, strict=True)]
        return float(self._metric._compute_score_from_stats(total).score)
