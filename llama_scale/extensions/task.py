"""The public, heavy side of a task plugin: examples to token sequences, a loss, predictions and metrics.

Shape letters: S sequence, R rows (sequences of this task in a micro-batch), H hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from llama_scale.data.chat_turns import RenderedChat
from llama_scale.extensions.examples import Example, FileTaskOptions, SplitName, read_split


class Tokenizer(Protocol):
    """What a task needs of a tokenizer."""

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a document."""
        ...

    @property
    def start_ids(self) -> list[int]:
        """Ids that the tokenizer puts before a text that starts a sequence: its BOS, or none.

        A task puts them before the text that starts a sequence or a segment, and before no other; a rendered
        conversation begins with what its template writes.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Return token ids; nothing is put before or behind them."""
        ...

    def encode_after(self, before: str, text: str) -> list[int]:
        """Return the ids of a text that continues another one, such as an answer behind its prompt."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return token ids and the characters ``[start, end)`` of the text that each stands for."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation by the tokenizer's chat template; special tokens are part of it.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, with more keys that the template reads.
            add_generation_prompt: End with the head of the assistant's next turn.
            tools: JSON schemas of tools.
            options: More variables of the template.

        Raises:
            DataError: The tokenizer has no template, or the template refuses the conversation.
        """
        ...

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        turns: Collection[int],
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """Return the text of a conversation, and the characters of it that some turns of the assistant cover.

        Args:
            messages: As for ``chat``.
            turns: Numbers of messages of the assistant, from 0.
            tools: As for ``chat``.
            options: As for ``chat``.

        Raises:
            DataError: As ``chat``; or the template passes over a key of a message, or does not let the turns be told.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task is told.

    Args:
        name: The task's name in the spec.
        tokenizer: The run's tokenizer.
        seq_length: Longest sequence.
        sizes: ``hidden_size, vocab_size, num_layers`` of the model.
        seed: The run's seed.
    """

    name: str
    tokenizer: Tokenizer
    seq_length: int
    sizes: Mapping[str, int]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One token sequence made of (a part of) an example.

    Args:
        tokens: integers ``[n]``, 0 < n <= seq_length.
        weights: 0 or 1 each, ``[n]``: whether the loss counts *predicting* ``tokens[i]`` from those before it in its
            segment (0 for the first of a segment and for prompts). For a head of its own: what the task's ``loss``
            counts, put where it likes; their sum is the number that the summed loss is divided by.
        segments: integers ``[n]``, ascending from 0 without gaps: tokens attend only within their segment, positions
            restart at each; None: one segment.
        extra: More arrays for ``loss`` (integers or floats); the same names and shapes for every feature of the task.
        cut: Tokens of the example that were left out to make it fit; they are counted and reported.
    """

    tokens: np.ndarray
    weights: np.ndarray
    segments: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """The rows of one task in a micro-batch.

    Args:
        tokens: ``[R, S]``, padded.
        weights: ``[R, S]``, the features' weights, 0 in padding.
        documents: ``[R, S]`` segment numbers; -1 in padding.
        extra: Stacked arrays ``[R, ...]`` of the features.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    documents: torch.Tensor
    extra: Mapping[str, torch.Tensor]


class HeadContext(Protocol):
    """What surrounds a head on the last stage."""

    parameters: Mapping[str, torch.Tensor]
    """The head's own parameters (whole on every rank unless the descriptor cuts them), fp32."""

    def gather_replicas(self, x: torch.Tensor) -> torch.Tensor:
        """Join ``[R, ...]`` of all data parallel replicas to ``[R_0 + R_1 + ..., ...]``, with gradient.

        R is the number of this task's rows; it differs between replicas and may be 0: ``Task.loss`` is called on every
        replica as soon as one of them has rows in this micro-batch slot, and all of them must call this alike. In
        validation ``Task.loss`` is given groups of rows, the same on every layout, and this returns ``x``.
        """
        ...

    @property
    def own_offset(self) -> int:
        """Rows of the replicas before this one in what ``gather_replicas`` returns."""
        ...


class Model(Protocol):
    """What a task is evaluated on: a run's, checkpoint's or exported model with one adapter, or the mixture."""

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        """Return the new tokens of each prompt up to the first EOS, which is left out; greedy unless the user asked
        for sampling."""
        ...

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the final hidden states ``[n, H]`` (after the final norm, fp32, CPU) of each sequence."""
        ...

    @property
    def head(self) -> Mapping[str, torch.Tensor]:
        """The task head's parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out for one example.

    Args:
        prediction: For people and for the JSON: a text, a label, ranked ids.
        reference: What was expected.
        scores: Metric -> this example's value, for metrics that are means over examples.
        parts: Numbers that corpus metrics (BLEU, chrF) add up; ``Task.corpus_scores`` reads them.
    """

    prediction: Any
    reference: Any
    scores: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)


class Task:
    """One task; subclass this.

    Args:
        options: The task's options.
        context: The run.
    """

    packable = True
    """Whether several features may share one row (they never see each other)."""

    def __init__(self, options: Any, context: TaskContext) -> None:
        self.options = options
        self.context = context

    def examples(self, split: SplitName) -> Iterable[Example]:
        """Yield the examples of a split; default: the rows that options derived from ``FileTaskOptions`` name.

        Raises:
            DataError: A file is missing, or a row lacks a field; file and line are named.
        """
        if not isinstance(self.options, FileTaskOptions):
            raise NotImplementedError(f"{type(self).__name__} has no files: override examples()")
        return read_split(self.options, split)

    def encode(self, example: Example) -> Sequence[Feature]:
        """Turn one example into features: several for a long context, none if it cannot be used (it is counted).

        Raises:
            DataError: The example is not usable and the options say that this is an error.
        """
        raise NotImplementedError

    def loss(self, hidden: torch.Tensor, rows: TaskRows, head: HeadContext) -> torch.Tensor:
        """Return the summed, weighted loss of these rows; only for a head of its own.

        Args:
            hidden: Final hidden states ``[S, R, H]``, the same on all tensor parallel ranks.
            rows: What goes with them.
            head: Parameters and collectives.
        """
        raise NotImplementedError

    def predict(self, model: Model, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Yield what the model makes of examples, in order."""
        raise NotImplementedError

    def notes(self) -> Sequence[str]:
        """Return what a user must know of the examples that were encoded so far; it is logged as a warning."""
        return ()

    def corpus_scores(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Return the metrics of a whole set; default: the means of the examples' scores."""
        names = outcomes[0].scores if outcomes else ()
        return {name: sum(o.scores[name] for o in outcomes) / len(outcomes) for name in names}
