"""A LLaMA layer whose rows belong to different adapters.

Shape letters: R rows, S positions of this call, T positions so far, P positions of a prefix, H hidden, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from llama_scale.extensions.adapter import LayerAdapter

Acting = Sequence[LayerAdapter | None]
"""Who acts on which rows: each has an equal part of the rows, in this order."""


def _each(acting: Acting, change: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Let each adapter change its rows (dim 1) of the last tensor; ``change(adapter, *rows)``."""
    if not any(acting):
        return tensors[-1]
    parts = zip(acting, *(tensor.chunk(len(acting), dim=1) for tensor in tensors), strict=True)
    changed = [rows[-1] if adapter is None else change(adapter, *rows) for adapter, *rows in parts]
    return torch.cat(changed, dim=1) if len(changed) > 1 else changed[0]


def _linear(linear: nn.Module, target: str, x: torch.Tensor, acting: Acting) -> torch.Tensor:
    """Apply one of the layer's linear layers and what adapters change before and behind it."""
    before = [a if a is not None and target in a.changes_input else None for a in acting]
    x = _each(before, lambda adapter, rows: adapter.input(target, rows), x)
    behind = [a if a is not None and target in a.outputs() else None for a in acting]
    return _each(behind, lambda adapter, rows, out: adapter.output(target, rows, out), x, linear(x))


class AdaptedLayer(LlamaDecoderLayer):
    """A LLaMA layer whose rows belong to different adapters."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.number = layer_idx
        self.adapters = nn.ModuleDict()

    def base_weight(self, target: str) -> torch.Tensor:
        """Return the matrix ``[out, in]`` of a linear layer."""
        owner = self.mlp if hasattr(self.mlp, target) else self.self_attn
        return getattr(owner, target).weight.detach()

    def forward(
        self,
        x: torch.Tensor,
        *,
        names: Sequence[str | None],
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """Map ``[S, R, H]`` to the same.

        Args:
            x: The residual stream.
            names: Adapter of each equal part of the rows; None: none.
            rotation: Cosines and sines, ``[B, S, D]``.
            mask: ``[B, 1, S, T]``, true where attention is allowed; None: all that came before.
            cache: Keys and values before.
        """
        acting = [
            self.adapters[module_name(n)] if n is not None and module_name(n) in self.adapters else None for n in names
        ]
        y = self._attention(self.input_layernorm(x), acting, rotation=rotation, mask=mask, cache=cache)
        x = x + _each([a if a and "attention" in a.blocks() else None for a in acting], _block("attention"), y)
        y, mlp = self.post_attention_layernorm(x), self.mlp
        gate, up = (_linear(getattr(mlp, name), name, y, acting) for name in ("gate_proj", "up_proj"))
        y = _linear(mlp.down_proj, "down_proj", F.silu(gate) * up, acting)
        return x + _each([a if a and "mlp" in a.blocks() else None for a in acting], _block("mlp"), y)

    def _attention(
        self,
        x: torch.Tensor,
        acting: Acting,
        *,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        attention, (length, rows) = self.self_attn, x.shape[:2]
        query, key, value = (
            _linear(getattr(attention, name), name, x, acting)
            .view(length, rows, -1, attention.head_dim)
            .permute(1, 2, 0, 3)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        cos, sin = (part.repeat(rows // len(part), 1, 1) for part in rotation)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.number)
        prefixes = [None if adapter is None else adapter.prefix() for adapter in acting]
        if any(prefix is not None for prefix in prefixes):
            parts = (tensor.chunk(len(acting)) for tensor in (query, key, value))
            out = torch.cat([_attend(*part, mask, prefix) for *part, prefix in zip(*parts, prefixes, strict=True)])
        else:
            out = _attend(query, key, value, mask, None)
        return _linear(attention.o_proj, "o_proj", out.permute(2, 0, 1, 3).flatten(2), acting)


def _block(which: str) -> Callable[..., torch.Tensor]:
    return lambda adapter, rows: adapter.block(which, rows)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Attend ``[R, heads, S, D]`` to ``[R, kv heads, T, D]`` and to a prefix ``[P, kv heads, D]``."""
    rows, length = query.shape[0], query.shape[2]
    if prefix is not None:
        if mask is None:
            mask = _causal(length, key.shape[2], device=query.device)
        mask = F.pad(mask, (len(prefix[0]), 0), value=True)
        key, value = (
            torch.cat((own.to(x.dtype).transpose(0, 1).expand(rows, -1, -1, -1), x), dim=2)
            for own, x in zip(prefix, (key, value), strict=True)
        )
    if mask is not None and len(mask) not in (1, rows):
        mask = mask.repeat(rows // len(mask), 1, 1, 1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and length > 1,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _causal(length: int, total: int, *, device: torch.device) -> torch.Tensor:
    """Return ``[1, 1, S, T]``: the last ``length`` of ``total`` positions attend to those up to them."""
    return torch.ones(1, 1, length, total, dtype=torch.bool, device=device).tril_(total - length)


def module_name(name: str) -> str:
    """Return an adapter's name as a module may have it: without dots."""
    return name.replace(".", "%2E")
