"""Which modules a LLaMA layer is made of: Transformer Engine's where it can be used, this package's otherwise."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llama_scale.train.adapting import LayerHooks, decode_rows, linked
from llama_scale.train.attention import CoreAttention, LlamaSelfAttention
from llama_scale.train.mixture_rows import branched, narrowed
from llama_scale.train.mlp import LlamaMLP
from llama_scale.train.norm import RMSNorm
from llama_scale.train.versions import (
    AttnMaskType,
    ColumnParallelLinear,
    IdentityOp,
    ModuleSpec,
    RowParallelLinear,
    SelfAttentionSubmodules,
    TransformerBlockSubmodules,
    TransformerConfig,
    TransformerLayer,
    TransformerLayerSubmodules,
    get_bias_dropout_add,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_scale.extensions.adapter import LayerAdapter


class LlamaLayer(TransformerLayer):
    """A transformer layer with the adapters that touch it."""

    hooks: LayerHooks | None = None
    frozen_below = False
    """Nothing up to and including this layer trains: it runs without a graph, and gradients end or pass as zeros."""

    def add_adapters(self, adapters: Mapping[int, tuple[str, LayerAdapter]]) -> None:
        """Take in the adapters of this layer: number in the spec -> (name, module)."""
        self.adapters = nn.Module()
        # Not add_module: a name from a spec may be one that torch's class uses for itself.
        self.adapters._modules.update(dict(adapters.values()))
        self.hooks = LayerHooks({number: adapter for number, (_, adapter) in adapters.items()})
        self.self_attention.hooks = self.mlp.hooks = self.hooks

    def forward(
        self, hidden_states: torch.Tensor, *, context: torch.Tensor | None = None, **rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the layer; ``context`` is from ``adapting.encode_rows`` and is handed on as it is.

        Args:
            hidden_states: ``[S, B, H]``.
            context: Whose rows are in the micro-batch; None without adapters.
            rest: See TransformerLayer.
        """
        rows = () if context is None else decode_rows(context)
        if rows:
            if self.hooks is not None:
                hidden_states = branched(hidden_states, rows, dim=1)
            rest = narrowed(rest, hidden_states.shape[1])
        if self.frozen_below:
            with torch.no_grad():
                output, _ = super().forward(hidden_states, **rest)
            return linked(output, hidden_states) if hidden_states.requires_grad else output, context
        if not rows or self.hooks is None:
            output, _ = super().forward(hidden_states, **rest)
            return output, context
        self.hooks.select(rows)
        if torch.is_grad_enabled():
            hidden_states = self.hooks.bind(hidden_states)
        try:
            output, _ = super().forward(hidden_states, **rest)
        finally:
            self.hooks.release()
        return output, context


@functools.cache
def has_transformer_engine() -> bool:
    """Tell whether Transformer Engine is installed and there is a GPU for it."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def block_spec(config: TransformerConfig, num_layers: int, *, adapters: bool = False) -> TransformerBlockSubmodules:
    """Describe a block of equal layers with its final norm (built only in the chunk that has the head).

    Args:
        config: Settings of the layers.
        num_layers: How many.
        adapters: Adapters read the normalised input of the linear layers, so norms must be modules of their own.
    """
    if has_transformer_engine():
        return _transformer_engine_block(num_layers, fused=not adapters)
    layer = _layer(
        norm=RMSNorm,
        qkv=ColumnParallelLinear,
        column=ColumnParallelLinear,
        row=RowParallelLinear,
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _transformer_engine_block(num_layers: int, *, fused: bool) -> TransformerBlockSubmodules:
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TELayerNormColumnParallelLinear,
        TENorm,
        TERowParallelLinear,
    )

    # Fused, the layer norms are part of the linear layers that follow them: one kernel, one activation less.
    column = TELayerNormColumnParallelLinear if fused else TEColumnParallelLinear
    layer = _layer(norm=IdentityOp if fused else TENorm, qkv=column, column=column, row=TERowParallelLinear)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TENorm)


def _layer(*, norm: type, qkv: type, column: type, row: type) -> ModuleSpec:
    attention = ModuleSpec(
        module=LlamaSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(linear_qkv=qkv, core_attention=CoreAttention, linear_proj=row),
    )
    # A class of its own, because Megatron-Core passes arguments by the class it finds in a ModuleSpec.
    mlp = type("LlamaMLP", (LlamaMLP,), {"linear_classes": (column, row)})
    return ModuleSpec(
        module=LlamaLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )
