"""Floating point operations of a training step, with the convention named.

A multiply-add is 2 FLOPs; the backward pass takes twice the forward pass. Norms, RoPE, softmax and the embedding
look-up are left out, as in the papers.
"""

from __future__ import annotations

from typing import Literal

from llama_scale.plan.stages import Stages
from llama_scale.plan.workload import Frozen
from llama_scale.spec.model import ModelShape
from llama_scale.spec.recompute import FullRecompute, Recompute

Convention = Literal["full", "causal"]
"""How attention is counted. ``full``: all s x s pairs, the convention of PaLM's MFU (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B) and of Narayanan et al. 2021 (arXiv:2104.04473). ``causal``: only the s (s + 1) / 2
pairs that the mask leaves, the convention of Megatron-LM's logs since 2025."""

_FORWARD_AND_BACKWARD = 3


def matmul_flops_per_token(shape: ModelShape) -> int:
    """Return the forward FLOPs of one token in all weight matrices, the output layer included."""
    queries = shape.num_heads * shape.head_dim
    keys_values = 2 * shape.num_kv_heads * shape.head_dim
    attention = shape.hidden_size * (2 * queries + keys_values)
    mlp = 3 * shape.hidden_size * shape.ffn_hidden_size
    return 2 * (shape.num_layers * (attention + mlp) + shape.hidden_size * shape.vocab_size)


def attention_flops_per_token(shape: ModelShape, seq_length: int, *, convention: Convention = "full") -> float:
    """Return the forward FLOPs of one token in q k^T and in the weighted sum of v, averaged over a sequence."""
    keys = seq_length if convention == "full" else (seq_length + 1) / 2
    return 4 * shape.num_layers * shape.num_heads * shape.head_dim * keys


def model_flops_per_token(
    shape: ModelShape, seq_length: int, *, convention: Convention = "full", frozen: Frozen | None = None
) -> float:
    """Return the model FLOPs of training on one token: what MFU counts, recomputation not included.

    A frozen base needs no gradients of its weights, which are half of a backward pass through matrices, and no backward
    pass below its lowest adapter; what adapters compute themselves is left out.

    Args:
        shape: The model.
        seq_length: Tokens of a sample.
        convention: How attention is counted.
        frozen: What trains instead of the model; None: the model does.

    Example:
        >>> shape = ModelShape(hidden_size=4, ffn_hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
        ...                    head_dim=2, vocab_size=16)
        >>> model_flops_per_token(shape, 8)  # 3 * (2 * (48 + 96 + 64) + 4 * 4 * 8)
        1632.0
    """
    attention = attention_flops_per_token(shape, seq_length, convention=convention)
    if frozen is None:
        return float(_FORWARD_AND_BACKWARD * (matmul_flops_per_token(shape) + attention))
    head = 2 * shape.hidden_size * shape.vocab_size
    matrices = (matmul_flops_per_token(shape) - head) / shape.num_layers
    attention /= shape.num_layers
    trained = shape.num_layers - frozen.first_layer
    backward = 2 * head + trained * (2 * matrices + 3 * attention) if trained else head
    return float(frozen.first_layer * (matrices + attention) + frozen.copies * backward)


def recomputed_flops_per_token(
    shape: ModelShape,
    seq_length: int,
    *,
    stages: Stages,
    recompute: Recompute,
    convention: Convention = "full",
    frozen: Frozen | None = None,
) -> float:
    """Return the forward FLOPs that the backward pass does again: hardware FLOPs (HFU) are model FLOPs plus these.

    Args:
        shape: The model.
        seq_length: Tokens of a sample.
        stages: Its chunks; ``method: block`` recomputes the first layers of each.
        recompute: What is recomputed.
        convention: How attention is counted.
        frozen: What trains instead of the model; layers below its lowest adapter compute nothing again.
    """
    first, copies = (0, 1) if frozen is None else (frozen.first_layer, frozen.copies)
    trained = [sum(layer >= first for layer in chunk.layers) for stage in stages for chunk in stage]
    attention = attention_flops_per_token(shape, seq_length, convention=convention)
    share = copies * sum(trained) / shape.num_layers
    if recompute.kind == "none":
        return 0.0
    if not isinstance(recompute, FullRecompute):
        return float(attention) * share
    head = 2 * shape.hidden_size * shape.vocab_size
    layers = matmul_flops_per_token(shape) - head + attention
    if recompute.method == "uniform":
        return float(layers) * share
    again = sum(min(recompute.layers, count) for count in trained)
    return copies * layers * again / shape.num_layers
