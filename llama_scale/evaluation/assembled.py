"""A Hugging Face folder as the model that tasks are evaluated on: batched, with KV cache, with any of its adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama_scale.convert.foreign_code import CONSENT, foreign_code
from llama_scale.convert.models import generation_settings, stop_ids
from llama_scale.convert.reference import load_model
from llama_scale.errors import ConvertError, LaunchError

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0: the most likely token; else the softmax's temperature.
        top_p: Sample from the smallest set of tokens whose probabilities sum to this.
        seed: Of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """Return transformers' settings."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


class AssembledModel:
    """Implements ``extensions.task.Model``.

    Args:
        folder: Hugging Face folder: a plain LLaMA, or a mixture that `convert export --as mixture` wrote.
        sampling: How ``generate`` chooses.
        batch_size: Sequences of one forward pass.
        end_id: A token that ends a text beside those that the folder names (a task's EOS).
        trust_code: Run Python code of the folder that no export writes.

    Raises:
        LaunchError: The folder brings such code, and it may not run.
        ConvertError: transformers cannot load the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sampling: Sampling | None = None,
        batch_size: int = 8,
        end_id: int | None = None,
        trust_code: bool = False,
    ) -> None:
        foreign = foreign_code(folder)
        if foreign is not None and not trust_code:
            raise LaunchError(
                f"{folder} brings code of its own: {foreign}; {CONSENT}, or use the run or checkpoint it was made from"
            )
        self.folder = folder
        self.batch_size = batch_size
        self._sampling = sampling or Sampling()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_model(folder, dtype=torch.float32 if device == "cpu" else "auto", trust_code=trust_code)
        self._model = self._model.to(device).eval()
        self._stop = stop_ids(folder)
        if end_id is not None and end_id not in self._stop:
            self._stop = (*self._stop, end_id)
        self._device = device
        self._head: Mapping[str, torch.Tensor] = {}
        self.on_advance: Advance = lambda _done: None
        """Told how many sequences are done, for a progress bar."""

    @property
    def context(self) -> int:
        """Longest sequence the model is meant for."""
        return int(self._model.config.max_position_embeddings)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters, in the order of the mixture; none for a plain model."""
        return tuple(getattr(self._model, "adapter_names", ()))

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self._model.parameters())

    @property
    def head(self) -> Mapping[str, torch.Tensor]:
        """Parameters of the chosen task's head."""
        return self._head

    def use(self, name: str | None, *, head: Mapping[str, torch.Tensor] | None = None) -> None:
        """Choose who answers.

        Args:
            name: An adapter, ``base`` or ``mixture``; None: the folder's own default.
            head: Parameters of the task's head.

        Raises:
            LaunchError: There is no such adapter, or no mixture.
        """
        self._head = head or {}
        if hasattr(self._model, "set_adapter") and hasattr(self._model, "set_mixture"):
            try:
                if name == "mixture":
                    self._model.set_mixture()
                elif name is not None:
                    self._model.set_adapter(None if name == "base" else name)
            except ValueError as error:
                if name == "mixture":
                    raise LaunchError(f"{self.folder} has no mixture; choose one of its adapters, or base") from error
                raise LaunchError(f"{self.folder}: {error}") from error
        elif name not in (None, "base"):
            raise LaunchError(
                f"{self.folder} is a plain model without adapters, so {name!r} cannot be chosen; use the run, its "
                "checkpoint, or a folder of `llama-scale convert export --as mixture`"
            )

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        """Return the new tokens of each prompt; see ``extensions.task.Model``."""
        torch.manual_seed(self._sampling.seed)
        results: list[list[int]] = [[] for _ in prompts]
        for numbers in _by_length(prompts, self.batch_size):
            for number, new in zip(numbers, self._continue([prompts[i] for i in numbers], max_new_tokens), strict=True):
                results[number] = new
            self.on_advance(len(numbers))
        return results

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the final hidden states of each sequence; see ``extensions.task.Model``."""
        results: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        for numbers in _by_length(sequences, self.batch_size):
            batch = [sequences[i] for i in numbers]
            # Padding on the right needs no mask: no token attends to what comes after it.
            tokens = torch.zeros(len(batch), max(1, *map(len, batch)), dtype=torch.long)
            for row, ids in zip(tokens, batch, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            with torch.inference_mode():
                hidden = self._model.model(input_ids=tokens.to(self._device), use_cache=False)[0]
            for number, row, ids in zip(numbers, hidden, batch, strict=True):
                results[number] = row[: len(ids)].float().cpu()
            self.on_advance(len(numbers))
        return results

    def _continue(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        longest = max(map(len, prompts))
        if longest == 0:
            raise ConvertError("a prompt has no tokens; write at least one word")
        room = self.context - longest
        if room <= 0:
            raise ConvertError(f"a prompt has {longest} tokens and the model's context is {self.context}; shorten it")
        pad = self._stop[0] if self._stop else 0
        tokens = torch.full((len(prompts), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, seen, ids in zip(tokens, mask, prompts, strict=True):
            row[longest - len(ids) :] = torch.tensor(ids)
            seen[longest - len(ids) :] = 1
        settings = generation_settings(
            self._model,
            stop=self._stop,
            max_new_tokens=min(max_new_tokens, room),
            pad_token_id=pad,
            **self._sampling.settings(),
        )
        with torch.inference_mode():
            made = self._model.generate(
                tokens.to(self._device), attention_mask=mask.to(self._device), generation_config=settings
            )
        for row in made[:, longest:].tolist():
            end = next((i for i, token in enumerate(row) if token in self._stop), len(row))
            yield row[:end]


def _by_length(sequences: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the numbers of sequences in batches of similar length, longest first: a lack of memory shows at once."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
