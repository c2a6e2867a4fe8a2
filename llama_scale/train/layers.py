"""Which modules a LLaMA layer is made of: Transformer Engine's where it can be used, this package's otherwise."""

from __future__ import annotations

import functools
import importlib.util

import torch

from llama_scale.train.attention import CoreAttention, LlamaSelfAttention
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


@functools.cache
def has_transformer_engine() -> bool:
    """Tell whether Transformer Engine is installed and there is a GPU for it."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def block_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Describe a block of equal layers with its final norm (built only in the chunk that has the head)."""
    if has_transformer_engine():
        return _transformer_engine_block(num_layers)
    layer = _layer(
        norm=RMSNorm,
        qkv=ColumnParallelLinear,
        column=ColumnParallelLinear,
        row=RowParallelLinear,
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _transformer_engine_block(num_layers: int) -> TransformerBlockSubmodules:
    # The layer norms are part of the linear layers that follow them: one kernel, one activation less.
    from megatron.core.extensions.transformer_engine import (
        TELayerNormColumnParallelLinear,
        TENorm,
        TERowParallelLinear,
    )

    layer = _layer(
        norm=IdentityOp,
        qkv=TELayerNormColumnParallelLinear,
        column=TELayerNormColumnParallelLinear,
        row=TERowParallelLinear,
    )
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
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )
