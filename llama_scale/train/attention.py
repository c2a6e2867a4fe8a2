"""Self-attention of a LLaMA on Megatron-Core's parallel linear layers.

Shape letters: S sequence, B batch, G key/value groups of this rank, Q queries per group, D head width, H hidden,
P positions of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from llama_scale.train.adapting import split_parts
from llama_scale.train.low_rank import Fused
from llama_scale.train.rope import split_and_rotate
from llama_scale.train.versions import SelfAttention

if TYPE_CHECKING:
    from llama_scale.train.adapting import LayerHooks


def document_mask(documents_BS: torch.Tensor) -> torch.Tensor:
    """Return ``[B, 1, S, S]``, true where a position may attend to another: not later, and in the same document."""
    length = documents_BS.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_BS.device).tril_()
    same = documents_BS.unsqueeze(2) == documents_BS.unsqueeze(1)
    return (same & causal).unsqueeze(1)


class CoreAttention(nn.Module):
    """Causal softmax attention over torch's fused kernels; no matrix of S x S is kept."""

    def __init__(self, **_: Any) -> None:
        # Megatron-Core passes settings of its own implementation; LLaMA needs none of them.
        super().__init__()

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend ``[B, G * Q, S, D]`` to ``[B, G, S, D]``; returns ``[S, B, G * Q * D]``."""
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class LlamaSelfAttention(SelfAttention):
    """Grouped-query attention with rotary embedding: Megatron-Core's layers, a shorter way between them."""

    hooks: LayerHooks | None = None
    """The layer's adapters, if it has any; `layers.LlamaLayer` sets them."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        rotary_pos_emb: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output ``[S, B, H]`` (S of this rank with sequence parallelism) and no bias.

        Args:
            hidden_states: Normalised input of the same shape.
            attention_mask: From ``document_mask``, or None for plain causal attention.
            rotary_pos_emb: From ``rope.rotation``, for the whole sequence.
            _: What TransformerLayer passes for uses that this model does not have (inference, cross-attention).
        """
        mixed, _bias = self.linear_qkv(hidden_states)
        s, b = mixed.shape[:2]
        mixed = mixed.view(s, b, self.num_query_groups_per_partition, -1, self.hidden_size_per_attention_head)
        hooks = self.hooks
        if hooks is not None and hooks.changes_outputs("q_proj", "k_proj", "v_proj"):
            mixed = _adapted(mixed, hidden_states, hooks)
        query, key, value = split_and_rotate(mixed, rotary_pos_emb)
        if hooks is None:
            return self.linear_proj(self._attend(query, key, value, attention_mask))
        prefixes = hooks.prefixes()
        if prefixes:
            context = self._attend_with_prefixes(query, key, value, attention_mask, prefixes=prefixes)
        else:
            context = self._attend(query, key, value, attention_mask)
        context = hooks.input("o_proj", context)
        output, bias = self.linear_proj(context)
        return hooks.block("attention", hooks.output("o_proj", context, output)), bias

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        # With prefixes it runs for each group of rows, and ZeRO 3 wants all replicas to call the same modules.
        attend = self.core_attention if self.hooks is None else self.core_attention.forward
        if self.checkpoint_core_attention and self.training:
            # There is no dropout, so no random state to keep.
            return checkpoint(attend, query, key, value, attention_mask, use_reentrant=False, preserve_rng_state=False)
        return attend(query, key, value, attention_mask)

    def _attend_with_prefixes(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        prefixes: Sequence[tuple[slice, tuple[torch.Tensor, torch.Tensor] | None]],
    ) -> torch.Tensor:
        """Attend row by row group: each has positions of its own in front, or none."""
        parts = []
        for rows, prefix in prefixes:
            k, v = key[rows], value[rows]
            mask = None if attention_mask is None else attention_mask[rows]
            if prefix is not None:
                mask = _mask_behind(prefix[0].shape[0], mask, k)
                k, v = _behind(prefix[0], k), _behind(prefix[1], v)
            parts.append(self._attend(query[rows], k, v, mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _behind(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Put a prefix ``[P, G, D]`` in front of keys or values ``[B, G, S, D]``."""
    front = prefix.to(own.dtype).transpose(0, 1).expand(own.shape[0], -1, -1, -1)
    return torch.cat((front, own), dim=2)


def _mask_behind(length: int, mask: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor:
    """Return ``[B or 1, 1, S, P + S]``: every position sees the whole prefix beside what it saw."""
    if mask is None:
        size = key.shape[2]
        mask = torch.ones(1, 1, size, size, dtype=torch.bool, device=key.device).tril_()
    return F.pad(mask, (length, 0), value=True)


def _adapted(mixed: torch.Tensor, x: torch.Tensor, hooks: LayerHooks) -> torch.Tensor:
    """Let adapters change queries, keys and values, each as ``[S, B, heads * D]``, inside ``[S, B, G, Q + 2, D]``."""
    shape = mixed.shape
    width = shape[-1]
    parts = {"q_proj": (shape[3] - 2) * width, "k_proj": width, "v_proj": width}
    whole = hooks.fused_output(x, mixed.flatten(2), Fused(parts, groups=shape[2]))
    if whole is not None:
        return whole.view(shape)
    apart = split_parts(mixed, (shape[3] - 2, 1, 1), dim=3)
    changed = [
        hooks.output(target, x, part.flatten(2)).view(part.shape) for target, part in zip(parts, apart, strict=True)
    ]
    return torch.cat(changed, dim=3)
