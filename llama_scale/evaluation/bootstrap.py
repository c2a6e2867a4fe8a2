"""Confidence intervals by the bootstrap (Efron & Tibshirani 1993, chapter 13): how far a score may be chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number that was measured on a sample, with its percentile interval.

    Args:
        value: Measured on the sample itself.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All scores of one model on one set of examples.

    Args:
        values: Score -> its value on the set.
        drawn: Score -> its value on each resample ``[count]``.
    """

    values: Mapping[str, float]
    drawn: Mapping[str, np.ndarray]

    def interval(self, name: str, *, level: float) -> Interval:
        """Return a score with the interval that holds ``level`` of the resamples."""
        return _interval(self.values[name], self.drawn[name], level)

    def gain(self, over: Scores, name: str, *, level: float) -> Interval:
        """Return how much higher a score is than another model's on the same examples and resamples (paired)."""
        return _interval(self.values[name] - over.values[name], self.drawn[name] - over.drawn[name], level)


def _interval(value: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def resamples(size: int, *, count: int, seed: int) -> np.ndarray:
    """Return ``[count, size]`` numbers of examples, drawn with replacement; the same for every model compared."""
    drawn: np.ndarray = np.random.Generator(np.random.PCG64(seed)).integers(0, size, (count, size))
    return drawn


def score(
    examples: Sequence[T],
    corpus_scores: Callable[[Sequence[T]], Mapping[str, float]],
    *,
    example_scores: Sequence[Mapping[str, float]],
    draws: np.ndarray,
) -> Scores:
    """Score a set of examples and its resamples.

    Args:
        examples: What came out for each example; at least one.
        corpus_scores: All scores of a set; those that are no means, as BLEU, are computed anew for each resample.
        example_scores: For each example, the values of the scores that are means over examples.
        draws: From ``resamples``.
    """
    values = dict(corpus_scores(examples))
    drawn = {
        name: np.array([found[name] for found in example_scores], float)[draws].mean(axis=1)
        for name in example_scores[0]
        if name in values
    }
    others = [name for name in values if name not in drawn]
    if others:
        found = [corpus_scores([examples[i] for i in draw]) for draw in draws]
        drawn |= {name: np.array([one[name] for one in found], float) for name in others}
    return Scores(values=values, drawn=drawn)
