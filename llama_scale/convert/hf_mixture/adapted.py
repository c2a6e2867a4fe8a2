"""A LLaMA whose rows belong to different adapters.

Shape letters: B sequences, R rows, S positions of this call, T positions so far, P positions of a prefix, H hidden,
D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, apply_rotary_pos_emb

from llama_scale.convert.hf_mixture.mixing import CACHE, LlamaScaleCache
from llama_scale.extensions.adapter import LayerAdapter

Acting = Sequence[LayerAdapter | None]
"""Who acts on which rows: each has an equal part of the rows, in this order."""
_FEW = 8


def _each(acting: Acting, change: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Let each adapter change its rows (dim 1) of the last tensor; ``change(adapter, *rows)``."""
    if not any(acting):
        return tensors[-1]
    parts = zip(acting, *(tensor.chunk(len(acting), dim=1) for tensor in tensors), strict=True)
    changed = [rows[-1] if adapter is None else change(adapter, *rows) for adapter, *rows in parts]
    return torch.cat(changed, dim=1) if len(changed) > 1 else changed[0]


def product(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer to ``[..., in]``.

    Decoding asks for a few rows at a time. On CPUs their product is computed transposed: BLAS then reads the matrix as
    it lies, where it would first copy it into another order, at several times the cost of reading it.
    """
    rows = x.numel() // x.shape[-1]
    plain = type(linear) is nn.Linear and linear.bias is None and not hasattr(linear, "_hf_hook")
    if not plain or x.device.type != "cpu" or not 1 < rows <= _FEW:
        return linear(x)
    return (linear.weight @ x.reshape(rows, -1).t()).t().reshape(*x.shape[:-1], -1)


def _linear(linear: nn.Module, target: str, x: torch.Tensor, acting: Acting) -> torch.Tensor:
    """Apply one of the layer's linear layers and what adapters change before and behind it."""
    before = [a if a is not None and target in a.changes_input else None for a in acting]
    x = _each(before, lambda adapter, rows: adapter.input(target, rows), x)
    behind = [a if a is not None and target in a.outputs() else None for a in acting]
    return _each(behind, lambda adapter, rows, out: adapter.output(target, rows, out), x, product(linear, x))


class AdaptedLayer(LlamaDecoderLayer):
    """A LLaMA layer whose rows belong to different adapters."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.number = layer_idx
        self.adapters = nn.ModuleDict()

    def has_any(self, names: Sequence[str | None]) -> bool:
        """Tell whether an adapter of these names touches this layer."""
        return any(name is not None and module_name(name) in self.adapters for name in names)

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
        cache: LlamaScaleCache | None,
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
        cache: LlamaScaleCache | None,
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


class AdaptedModel(LlamaModel):
    """All but the output layer; a sequence becomes one row for each of ``names`` at the first layer they differ in."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(AdaptedLayer(config, n) for n in range(config.num_hidden_layers))
        self.names: tuple[str | None, ...] = (None,)
        """Adapter of each equal part of the rows; None: the bare base."""
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: LlamaScaleCache | None = None,
        cache: LlamaScaleCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Return hidden states ``[R, S, H]``; see ``LlamaScaleForCausalLM.forward`` for the arguments."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("this model reads input_ids, not inputs_embeds")
        cache = self._cache(past_key_values if cache is None else cache, batch=len(input_ids), use_cache=use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        mask, positions = _places(input_ids, attention_mask, position_ids, past=past)
        rotation = self.rotary_emb(self.norm.weight, positions)
        x = self.embed_tokens(input_ids).transpose(0, 1)
        states = []
        names: tuple[str | None, ...] = (None,)
        for layer in self.layers:
            states.append(x)
            if len(names) < len(self.names) and layer.has_any(self.names):
                x = x.repeat(1, len(self.names), 1)
            names = self.names if x.shape[1] == len(input_ids) * len(self.names) else (None,)
            x = layer(x, names=names, rotation=rotation, mask=mask, cache=cache)
        states.append(self.norm(x))
        return BaseModelOutputWithPast(
            last_hidden_state=states[-1].transpose(0, 1),
            hidden_states=tuple(state.transpose(0, 1) for state in states) if output_hidden_states else None,
            **{CACHE: cache},
        )

    def _cache(self, given: Any, *, batch: int, use_cache: bool | None) -> LlamaScaleCache | None:
        if not (self.config.use_cache if use_cache is None else use_cache):
            return None
        if given is not None and not isinstance(given, LlamaScaleCache):
            raise TypeError(f"this model makes its own cache; pass {CACHE}=None, not a {type(given).__name__}")
        cache = LlamaScaleCache() if given is None else given
        cache.begin(names=self.names, batch=batch)
        return cache


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


def _places(
    tokens: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor | None, *, past: int
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return who attends to whom, ``[B, 1, S, T]`` (None: to all before), and positions ``[B, S]``."""
    batch, length = tokens.shape
    total = past + length
    if attention_mask is not None and attention_mask.shape != (batch, total):
        raise ValueError(f"attention_mask has the shape {list(attention_mask.shape)}; it must be [{batch}, {total}]")
    real = torch.ones(batch, total, device=tokens.device) if attention_mask is None else attention_mask
    real = real.bool()
    if positions is None:
        positions = (real.cumsum(1) - 1).clamp(min=0)[:, past:]
    mask = None
    if not bool(real.all()) or (past and length > 1):
        causal = torch.ones(length, total, dtype=torch.bool, device=tokens.device).tril_(past)
        # A padding position attends to itself: over nothing, the softmax is not a number.
        own = torch.eye(length, total, dtype=torch.bool, device=tokens.device).roll(past, 1)
        mask = ((causal & real.unsqueeze(1)) | own).unsqueeze(1)
    return mask, positions


def module_name(name: str) -> str:
    """Return an adapter's name as a module may have it: without dots."""
    return name.replace(".", "%2E")
