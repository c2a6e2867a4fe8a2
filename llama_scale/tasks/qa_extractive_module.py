"""Implementation of the task ``qa_extractive``: windows over long contexts, scores of start and end, n-best spans.

A window is: what the tokenizer puts before a text, question, a part of the context, EOS. The EOS sees everything and
stands for "no answer in this window".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from llama_scale.errors import DataError
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, HeadContext, Model, Outcome, Task, TaskRows
from llama_scale.tasks.qa_extractive import QaExtractiveOptions
from llama_scale.tasks.text_scores import squad

_BATCH = 32
"""Examples whose hidden states exist at once in evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window.

    Args:
        tokens: Its ids.
        first: Position of its first context token; the EOS is at ``first + len(offsets)``.
        offsets: Characters ``[start, end)`` of the context that its context tokens stand for.
        part: Number of the first context token in the whole context.
    """

    tokens: list[int]
    first: int
    offsets: list[tuple[int, int]]
    part: int


class QaExtractive(Task):
    """A question whose answer is a span of a context."""

    options: QaExtractiveOptions
    packable = False

    def encode(self, example: Example) -> Sequence[Feature]:
        """See ``Task.encode``: one feature a window; the first answer that lies whole in it is its target."""
        spans = self.options.spans(example)
        features = []
        for window in self.windows(example):
            start, end = _target(window, spans)
            weights = np.zeros(len(window.tokens), np.float32)
            weights[0] = 1.0  # a window counts once
            features.append(
                Feature(
                    tokens=np.array(window.tokens),
                    weights=weights,
                    extra={
                        "span": np.array([start, end]),
                        "context": np.array([window.first, len(window.offsets)]),
                    },
                )
            )
        return features

    def windows(self, example: Example) -> list[Window]:
        """Cut an example's context into windows that overlap by ``stride`` tokens.

        Raises:
            DataError: The question is longer than ``max_question_tokens``.
        """
        tokenizer = self.context.tokenizer
        question = tokenizer.encode(example[self.options.question_field].strip())
        if len(question) > self.options.max_question_tokens:
            raise DataError(
                f"{example.where}: the question has {len(question)} tokens, more than max_question_tokens="
                f"{self.options.max_question_tokens}; raise it, or remove the row"
            )
        head = [*tokenizer.start_ids, *tokenizer.encode("Question:"), *question, *tokenizer.encode("\nContext:\n")]
        ids, offsets = tokenizer.encode_with_offsets(example[self.options.context_field])
        room = self.context.seq_length - len(head) - 1
        if room <= self.options.stride:
            raise DataError(
                f"{example.where}: beside the question a row of data.seq_length={self.context.seq_length} has room for "
                f"{room} tokens of the context, and windows share stride={self.options.stride}; use a longer "
                "seq_length or a smaller stride"
            )
        windows = []
        for start in range(0, max(1, len(ids) - self.options.stride), room - self.options.stride):
            part = ids[start : start + room]
            tokens = [*head, *part, tokenizer.eos_id]
            windows.append(Window(tokens=tokens, first=len(head), offsets=offsets[start : start + room], part=start))
        return windows

    def loss(self, hidden: torch.Tensor, rows: TaskRows, head: HeadContext) -> torch.Tensor:
        """See ``Task.loss``: the mean of the cross-entropies of start and end over a window's positions."""
        scores = _scores(hidden.transpose(0, 1), head.parameters["weight"], head.parameters["bias"])  # [R, S, 2]
        first, count = rows.extra["context"].unsqueeze(2).unbind(1)  # [R, 1]
        places = torch.arange(scores.shape[1], device=scores.device)
        outside = (places < first) | (places > first + count)
        scores = scores.masked_fill(outside.unsqueeze(2), -torch.inf)
        return (_span_losses(scores, rows.extra["span"]) * rows.weights.sum(1)).sum()

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """See ``Task.predict``: the best span over all windows of an example, or none if that may be."""
        for at in range(0, len(examples), _BATCH):
            batch = examples[at : at + _BATCH]
            windows = [self.windows(example) for example in batch]
            states = iter(model.hidden_states([window.tokens for of_one in windows for window in of_one]))
            for example, of_one in zip(batch, windows, strict=True):
                scored = [(window, self._window_scores(next(states), window, model)) for window in of_one]
                yield self._outcome(example, scored)

    def _window_scores(self, state: torch.Tensor, window: Window, model: Model) -> torch.Tensor:
        """Return scores ``[context tokens + 1, 2]`` of start and end; the last row is the EOS's."""
        found = _scores(state, model.head["weight"].float().cpu(), model.head["bias"].float().cpu())
        return found[window.first : window.first + len(window.offsets) + 1]

    def _outcome(self, example: Example, scored: Sequence[tuple[Window, torch.Tensor]]) -> Outcome:
        context = example[self.options.context_field]
        best: dict[str, float] = {}
        for window, scores in scored:
            for score, start, end in self._spans(scores[:-1]):
                text = context[window.offsets[start][0] : window.offsets[end][1]].strip()
                best[text] = max(score, best.get(text, -np.inf))
        ranked = sorted(best.items(), key=lambda item: -item[1])[: self.options.n_best]
        prediction = ranked[0][0] if ranked else ""
        null = min(float(scores[-1].sum()) for _, scores in scored)
        if self.options.unanswerable and (not ranked or null - ranked[0][1] > self.options.null_threshold):
            prediction = ""
        references = [context[start:end] for start, end in self.options.spans(example)]
        parts = {"n_best": [[text, round(score, 4)] for text, score in ranked[:3]], "null_score": round(null, 4)}
        return Outcome(prediction=prediction, reference=references, scores=squad(prediction, references), parts=parts)

    def _spans(self, scores: torch.Tensor) -> Iterator[tuple[float, int, int]]:
        """Yield (score, start, end) of the spans made of the best starts and ends."""
        count = min(self.options.n_best, len(scores))
        starts, ends = (torch.topk(scores[:, column], count).indices.tolist() for column in (0, 1))
        for start in starts:
            for end in ends:
                if start <= end < start + self.options.max_answer_tokens:
                    yield float(scores[start, 0] + scores[end, 1]), start, end


def _scores(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return scores of start and end ``[..., 2]`` in fp32."""
    return F.linear(hidden.float(), weight.float(), bias.float())


def _span_losses(scores: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Return ``[R]``: the mean of -log softmax over positions at start and at end; scores ``[R, S, 2]``."""
    log_probabilities = scores.log_softmax(dim=1)
    return -log_probabilities.gather(1, span.unsqueeze(1)).squeeze(1).mean(dim=1)


def _target(window: Window, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the positions of first and last token of the first answer that is whole in a window, else the EOS's."""
    for begin, stop in spans:
        starts = [place for place, (_, end) in enumerate(window.offsets) if end > begin]
        ends = [place for place, (start, _) in enumerate(window.offsets) if start < stop]
        if not starts or not ends:
            continue
        start, end = starts[0], ends[-1]
        whole = window.offsets[start][0] <= begin and window.offsets[end][1] >= stop
        if whole and start <= end:
            return window.first + start, window.first + end
    null = window.first + len(window.offsets)
    return null, null
