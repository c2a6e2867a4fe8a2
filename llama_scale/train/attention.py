"""Self-attention of a LLaMA on Megatron-Core's parallel linear layers.

Shape letters: S sequence, B batch, G key/value groups of this rank, Q queries per group, D head width, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from llama_scale.train.rope import split_and_rotate
from llama_scale.train.versions import SelfAttention


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
        query, key, value = split_and_rotate(mixed, rotary_pos_emb)
        if self.checkpoint_core_attention and self.training:
            # There is no dropout, so no random state to keep.
            context = checkpoint(
                self.core_attention, query, key, value, attention_mask, use_reentrant=False, preserve_rng_state=False
            )
        else:
            context = self.core_attention(query, key, value, attention_mask)
        return self.linear_proj(context)
