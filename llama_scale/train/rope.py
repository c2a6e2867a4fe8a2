"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) with Llama 3's scaling.

Frequencies equal those of Hugging Face's ``LlamaRotaryEmbedding``: pairs are (i, i + D/2), angles are computed in
fp32. Shape letters: S sequence, B batch, G key/value groups, Q queries per group, D head width.
"""

from __future__ import annotations

import math

import torch

from llama_scale.spec.model import ModelShape, RopeScaling


def inverse_frequencies(shape: ModelShape) -> torch.Tensor:
    """Return the angle per position of each pair, fp32 ``[D / 2]``."""
    exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    plain = 1.0 / (shape.rope_theta**exponent)
    return plain if shape.rope_scaling is None else _llama3_scaled(plain, shape.rope_scaling)


def _llama3_scaled(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    # Source: meta-llama/llama-models, models/llama3/reference_impl/model.py `apply_scaling`; long wavelengths are
    # divided by factor, short ones kept, those between are interpolated.
    original = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * plain / scaling.factor + smooth * plain
    scaled = torch.where(wavelength > original / scaling.low_freq_factor, plain / scaling.factor, plain)
    is_between = (wavelength >= original / scaling.high_freq_factor) & (
        wavelength <= original / scaling.low_freq_factor
    )
    return torch.where(is_between, between, scaled)


def rotation(inverse: torch.Tensor, positions_BS: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Return cosines and sines of each position's angles as one tensor ``[2, S, B or 1, D / 2]``.

    One tensor, because Megatron-Core's recompute passes tensors only. The batch dim is 1 when all rows have equal
    positions, which is the rule unless documents are isolated.
    """
    # Not on CUDA, where reading the answer would wait for the device.
    if positions_BS.device.type == "cpu" and bool((positions_BS[:1] == positions_BS).all()):
        positions_BS = positions_BS[:1]
    angles = positions_BS.transpose(0, 1).unsqueeze(-1).float() * inverse.to(positions_BS.device)
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def split_and_rotate(mixed: torch.Tensor, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut the fused projection into queries, keys and values and rotate the first two.

    Args:
        mixed: ``[S, B, G, Q + 2, D]``: each group's query heads, key head, value head.
        rotation: From ``rotation``, ``[2, S, B or 1, D / 2]``.

    Returns:
        Queries ``[B, G * Q, S, D]``, keys and values ``[B, G, S, D]``, contiguous, as attention kernels want them.
    """
    return _SplitAndRotate.apply(mixed, rotation)


class _SplitAndRotate(torch.autograd.Function):
    """One pass each way; the backward pass writes one gradient buffer instead of adding up three slices."""

    @staticmethod
    def forward(ctx, mixed, rotation):
        ctx.save_for_backward(rotation)
        ctx.mixed_shape = mixed.shape
        s, b, g, rows, d = mixed.shape
        query = mixed.new_empty(b, g, rows - 2, s, d)
        key = mixed.new_empty(b, g, 1, s, d)
        cos, sin = _aligned(rotation)
        source = mixed.permute(1, 2, 3, 0, 4)
        _rotate(source[:, :, :-2], cos, sin, out=query)
        _rotate(source[:, :, -2:-1], cos, sin, out=key)
        value = source[:, :, -1].contiguous()
        return query.view(b, g * (rows - 2), s, d), key.view(b, g, s, d), value

    @staticmethod
    def backward(ctx, grad_query, grad_key, grad_value):
        (rotation,) = ctx.saved_tensors
        s, b, g, rows, d = ctx.mixed_shape
        grad = grad_query.new_empty(ctx.mixed_shape)
        cos, sin = _aligned(rotation)
        target = grad.permute(1, 2, 3, 0, 4)
        # The inverse of a rotation turns the other way.
        _rotate(grad_query.view(b, g, rows - 2, s, d), cos, sin, out=target[:, :, :-2], inverse=True)
        _rotate(grad_key.view(b, g, 1, s, d), cos, sin, out=target[:, :, -2:-1], inverse=True)
        target[:, :, -1].copy_(grad_value)
        return grad, None


def _aligned(rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin as ``[B or 1, 1, 1, S, D / 2]``, to be broadcast over heads."""
    cos, sin = rotation.permute(0, 2, 1, 3).unsqueeze(2).unsqueeze(2).unbind(0)
    return cos, sin


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor, inverse: bool = False) -> None:
    sign = -1 if inverse else 1
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin, value=sign)
