"""Digests of tensors that do not depend on how they are cut: how a reshard is proven to have changed nothing.

The digest of a tensor ``x`` of shape ``[n_0, n_1, ...]`` is

    sum over all elements of  bits(x[i_0, i_1, ...]) * k_0(i_0) * k_1(i_1) * ...   (mod 2^64)

with fixed odd 64-bit keys ``k_d(i) = splitmix64(2^40 * d + i) | 1``. It is a multilinear hash (Lemire and Kaser,
"Strongly universal string hashing is fast", 2014) whose keys are a product over the dims, so that the sum over any box
is a few multiply-adds an element and pieces on any layout add up to the same number.

Strength: changing any one element always changes the digest (an odd key times a difference below 2^32 is not 0 mod
2^64); unrelated changes go unseen with a chance of about 2^-60; swapped rows, swapped tensors and shifted layers
change it. It is not made to withstand an adversary: each file's SHA-256 guards integrity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.safetensors_file import flat_view

if TYPE_CHECKING:
    from llama_scale.checkpoint.manifest import TensorEntry

_MASK = (1 << 64) - 1
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_keys: dict[int, npt.NDArray[np.int64]] = {}


def dim_keys(dim: int, *, size: int) -> npt.NDArray[np.int64]:
    """Return the keys of one dim's first ``size`` indices (cached; grows)."""
    known = _keys.get(dim)
    if known is None or len(known) < size:
        z = np.arange(max(size, 1024), dtype=np.uint64) + np.uint64(dim << 40) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        known = ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)
        _keys[dim] = known
    return known[:size]


def piece_digest(tensor: torch.Tensor, piece: Piece) -> int:
    """Return a piece's share of its tensor's digest, 0 <= share < 2^64.

    Args:
        tensor: The piece's elements in order, of any shape; on any device.
        piece: Where they belong.
    """
    bits = flat_view(tensor, _BITS[tensor.element_size()]).numpy()
    total = 0
    for box, at in piece.sub_boxes():
        sums = bits[at : at + box.numel].reshape(-1, box.shape[-1] if box.shape else 1)
        for dim in reversed(range(len(box.shape))):
            stop = box.offset[dim] + box.shape[dim]
            keys = dim_keys(dim, size=stop)[box.offset[dim] :]
            sums = np.einsum("ij,j->i", sums.reshape(-1, box.shape[dim]), keys)
        total += int(sums.reshape(-1)[0])
    return total & _MASK


def add_digests(*shares: int) -> int:
    """Combine the shares of a tensor's pieces."""
    return sum(shares) & _MASK


def parameter_digest(tensors: Mapping[str, TensorEntry]) -> str:
    """Return the SHA-256 (hex) over names, shapes, dtypes and digests of a group of tensors."""
    rows = [[name, list(t.shape), t.dtype, t.digest] for name, t in sorted(tensors.items())]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
