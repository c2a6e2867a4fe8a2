"""What a task makes of examples without a trained model: features, and outcomes with their scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, Outcome, Task
from llama_scale.train.conformance.report import Failed


def check_features(task: Task, examples: Sequence[Example], *, own_head: bool, seq_length: int) -> str:
    """Check every feature of every example, and that encoding again gives the same.

    Raises:
        Failed: A feature has another form than it has to have.
    """
    count = 0
    counted = 0.0
    forms: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
    for example in examples:
        features, again = list(task.encode(example)), list(task.encode(example))
        if len(features) != len(again) or not all(map(_equal, features, again)):
            raise Failed(f"{example.where}: encoding it twice gave different features")
        for feature in features:
            _check_feature(feature, example.where, own_head=own_head, seq_length=seq_length)
            forms.add(tuple(sorted((name, np.shape(value)) for name, value in feature.extra.items())))
            count += 1
            counted += float(np.sum(feature.weights))
    if not count or not counted:
        raise Failed(f"{len(examples)} examples gave {count} features with {counted:g} counted positions")
    if len(forms) > 1:
        raise Failed(f"features have different extra arrays: {sorted(forms)[0]} and {sorted(forms)[1]}")
    return f"{count} features of {len(examples)} examples"


def _equal(one: Feature, other: Feature) -> bool:
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.weights, other.weights)
        and one.extra.keys() == other.extra.keys()
        and all(np.array_equal(one.extra[name], other.extra[name]) for name in one.extra)
    )


def _check_feature(feature: Feature, where: str, *, own_head: bool, seq_length: int) -> None:
    size = len(feature.tokens)
    if not 0 < size <= seq_length:
        raise Failed(f"{where}: a feature has {size} tokens, and rows have 1 to {seq_length}")
    if not np.issubdtype(np.asarray(feature.tokens).dtype, np.integer):
        raise Failed(f"{where}: tokens are {np.asarray(feature.tokens).dtype}, not integers")
    if len(feature.weights) != size or not set(np.unique(feature.weights)) <= {0, 1}:
        raise Failed(f"{where}: weights are one 0 or 1 a token")
    segments = np.zeros(size, np.int64) if feature.segments is None else np.asarray(feature.segments)
    firsts = np.flatnonzero(np.diff(segments, prepend=-1))
    if len(segments) != size or not np.array_equal(segments[firsts], np.arange(len(firsts))):
        raise Failed(f"{where}: segments count up from 0 without gaps, one number a token")
    if not own_head and np.any(np.asarray(feature.weights)[firsts]):
        raise Failed(f"{where}: the first token of a segment has weight 1, and nothing before predicts it")


class StandIn:
    """Answers a task's questions without a model: generated tokens are the prompt's last ones, states are random."""

    def __init__(self, head: Mapping[str, torch.Tensor], hidden_size: int) -> None:
        self.head = head
        self._hidden_size = hidden_size

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        """See ``extensions.task.Model.generate``."""
        return [list(prompt[-min(4, max_new_tokens) :]) for prompt in prompts]

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """See ``extensions.task.Model.hidden_states``."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(len(sequence), self._hidden_size, generator=generator) for sequence in sequences]


def check_outcomes(task: Task, examples: Sequence[Example], model: StandIn) -> str:
    """Check what comes out for examples and what is made of it.

    Raises:
        Failed: An outcome is missing, or a score is no number.
    """
    outcomes: list[Outcome] = list(task.predict(model, examples))
    if len(outcomes) != len(examples):
        raise Failed(f"{len(examples)} examples gave {len(outcomes)} outcomes")
    for outcome in outcomes:
        json.dumps([outcome.prediction, outcome.reference, dict(outcome.parts)])
        if outcome.scores.keys() != outcomes[0].scores.keys():
            raise Failed("outcomes have different scores")
    scores = task.corpus_scores(outcomes)
    wrong = [name for name, value in scores.items() if not math.isfinite(value)]
    if not scores or wrong:
        raise Failed(f"the score {wrong[0]} is not finite" if wrong else "there are no scores")
    return ", ".join(f"{name} {value:.3g}" for name, value in scores.items())
