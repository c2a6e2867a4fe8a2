"""The mixture's side of an exported model: the posterior of a prefix, and the cache that carries it along.

Shape letters: B sequences, N adapters, R rows, S positions of this call, T positions so far, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls a cache in arguments and results: ``cache`` since 5.24."""


class Posterior:
    """p(a_i | prefix) of each sequence: the prior times what each adapter gave the tokens so far, padding left out.

    Sums are kept in fp64: thousands of nats in fp32 would leave the posterior three digits.
    """

    def __init__(self, log_prior: torch.Tensor, *, batch: int) -> None:
        wide = torch.float32 if log_prior.device.type == "mps" else torch.float64
        self.log_weights = log_prior.to(wide).unsqueeze(1).expand(-1, batch)  # [N, B]
        self.log_probs: torch.Tensor | None = None  # [N, B, V] of the token that comes next
        self.real: torch.Tensor | None = None  # [B]: whether the last position is no padding

    def advance(self, log_probs: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Take in the next positions.

        Args:
            log_probs: ``[S, N, B, V]`` of the tokens that come after them.
            tokens: ``[S, B]`` at them.
            real: ``[S, B]``: no padding.

        Returns:
            ``[S, N, B]`` log p(a_i | tokens up to each position).
        """
        evidence = log_probs.new_zeros(log_probs.shape[:3])
        counts = torch.zeros_like(real)
        evidence[1:] = log_probs[:-1].gather(3, tokens[1:, None, :, None].expand(-1, log_probs.shape[1], -1, 1))[..., 0]
        counts[1:] = real[1:] & real[:-1]
        if self.log_probs is not None and self.real is not None:
            evidence[0] = self.log_probs.gather(2, tokens[0, None, :, None].expand(len(self.log_probs), -1, 1))[..., 0]
            counts[0] = real[0] & self.real
        evidence = torch.where(counts.unsqueeze(1), evidence, 0.0).to(self.log_weights.dtype)
        weights = torch.log_softmax(self.log_weights + evidence.cumsum(0), dim=1)
        self.log_weights, self.log_probs, self.real = weights[-1], log_probs[-1].clone(), real[-1]
        return weights.float()

    def select(self, indices: torch.Tensor) -> None:
        """Go on with these sequences."""
        indices = indices.to(self.log_weights.device)
        self.log_weights = self.log_weights[:, indices]
        if self.log_probs is not None and self.real is not None:
            self.log_probs, self.real = self.log_probs[:, indices], self.real[indices]


class LlamaScaleCache(DynamicCache):
    """Keys and values of each layer, whatever its rows, and what the mixture must know of the prefix."""

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.posterior: Posterior | None = None
        self.names: tuple[str | None, ...] = ()
        self.batch = 0

    def begin(self, *, names: tuple[str | None, ...], batch: int) -> None:
        """Check that this cache goes on where it was filled."""
        if self.get_seq_length() and (names, batch) != (self.names, self.batch):
            raise ValueError(
                f"this cache was filled for the adapters {self.names} and {self.batch} sequences, and is used for "
                f"{names} and {batch}"
            )
        self.names, self.batch = names, batch

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[R, heads, S, D]`` and return all so far."""
        if layer_idx in self.states:
            keys, values = self.states[layer_idx]
            key_states, value_states = torch.cat((keys, key_states), -2), torch.cat((values, value_states), -2)
        self.states[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return T."""
        return self.states[layer_idx][0].shape[-2] if layer_idx in self.states else 0

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these sequences; their rows differ from layer to layer."""
        for layer, (keys, values) in self.states.items():
            rows = torch.cat([indices.to(keys.device) + first for first in range(0, keys.shape[0], self.batch)])
            self.states[layer] = (keys[rows], values[rows])
        if self.posterior is not None:
            self.posterior.select(indices)
        self.batch = len(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let sequence b go on from sequence ``beam_idx[b]`` (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        self.batch_select_indices(torch.arange(self.batch).repeat_interleave(repeats))

    def crop(self, *_: Any, **__: Any) -> None:
        """Refuse: earlier posteriors are not kept."""
        raise NotImplementedError("this model's cache cannot go back, which assisted generation needs")
