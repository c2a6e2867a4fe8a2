"""Models that tasks are evaluated on in tests: canned answers, and a tiny LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Canned:
    """Answers every prompt with given ids, and remembers the prompts."""

    def __init__(self, answers: Sequence[Sequence[int]], head: Mapping[str, torch.Tensor] | None = None) -> None:
        self.answers = [list(ids) for ids in answers]
        self.prompts: list[list[int]] = []
        self.head = head or {}

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        self.prompts = [list(ids) for ids in prompts]
        return [ids[:max_new_tokens] for ids in self.answers]

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        raise NotImplementedError


class Tiny:
    """A LlamaForCausalLM of transformers with random weights, one sequence at a time."""

    def __init__(self, vocab_size: int, eos_id: int, head: Mapping[str, torch.Tensor] | None = None) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=eos_id,
        )
        self.model: Any = LlamaForCausalLM(config).eval()
        self.eos_id = eos_id
        self.head = head or {}

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.eos_id,
            )[0, len(prompt) :].tolist()
            found.append(out[: out.index(self.eos_id)] if self.eos_id in out else out)
        return found

    @torch.no_grad()
    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [self.model.model(torch.tensor([list(ids)])).last_hidden_state[0].float() for ids in sequences]
