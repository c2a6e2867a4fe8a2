"""What the task does with examples, hidden states and outcomes.

Shape letters: S sequence, R rows, H hidden, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from llama_scale.extensions.examples import DataError, Example
from llama_scale.extensions.task import Feature, HeadContext, Model, Outcome, Task, TaskRows

if TYPE_CHECKING:
    from llama_scale_classification import ClassificationOptions


class Classification(Task):
    """One label a text."""

    options: ClassificationOptions
    packable = False  # each row has one label

    def encode(self, example: Example) -> Sequence[Feature]:
        """See ``Task.encode``: the text and an EOS, which sees everything and is what the head reads."""
        tokens, cut = self._tokens(example)
        weights = np.zeros(len(tokens), np.float32)
        weights[-1] = 1.0
        label = self.options.labels.index(example[self.options.label_field])
        return [Feature(tokens=np.array(tokens), weights=weights, extra={"label": np.array(label)}, cut=cut)]

    def _tokens(self, example: Example) -> tuple[list[int], int]:
        tokenizer, room = self.context.tokenizer, self.context.seq_length - 1
        ids = [*tokenizer.start_ids, *tokenizer.encode(example[self.options.text_field])]
        cut = max(0, len(ids) - room)
        if cut and self.options.overlong == "error":
            raise DataError(
                f"{example.where}: the text has {len(ids)} tokens, and a row has room for {room}; use a longer "
                "data.seq_length, or overlong: truncate_right"
            )
        return [*ids[:room], tokenizer.eos_id], cut

    def loss(self, hidden: torch.Tensor, rows: TaskRows, head: HeadContext) -> torch.Tensor:
        """See ``Task.loss``: cross-entropy of each row's label at its last token."""
        last = rows.weights.argmax(1)  # [R]
        states = hidden[last, torch.arange(len(last), device=hidden.device)]  # [R, H]
        scores = _scores(states, head.parameters["weight"], head.parameters["bias"])
        return F.cross_entropy(scores, rows.extra["label"], reduction="sum")

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """See ``Task.predict``."""
        states = model.hidden_states([self._tokens(example)[0] for example in examples])
        weight, bias = model.head["weight"].cpu(), model.head["bias"].cpu()
        for example, state in zip(examples, states, strict=True):
            best = self.options.labels[int(_scores(state[-1], weight, bias).argmax())]
            wanted = example[self.options.label_field]
            yield Outcome(prediction=best, reference=wanted, scores={"accuracy": float(best == wanted)})

    def corpus_scores(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Return accuracy and macro-F1."""
        pairs = [(outcome.prediction, outcome.reference) for outcome in outcomes]
        return {**super().corpus_scores(outcomes), "macro_f1": macro_f1(pairs, self.options.labels)}


def macro_f1(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> float:
    """Return the mean F1 over labels of (prediction, reference) pairs; a label that never occurs counts 0.

    The same as scikit-learn's ``f1_score(average="macro", labels=labels, zero_division=0)``.
    """
    return sum(_f1(pairs, label) for label in labels) / len(labels)


def _f1(pairs: Sequence[tuple[str, str]], label: str) -> float:
    hits = sum(prediction == reference == label for prediction, reference in pairs)
    named = sum((prediction == label) + (reference == label) for prediction, reference in pairs)
    return 2 * hits / named if named else 0.0


def _scores(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return scores ``[..., L]`` in fp32."""
    return F.linear(states.float(), weight.float(), bias.float())
