"""Low-rank changes of a fused projection: all its parts at once, without taking it apart and putting it together again.

Queries, keys and values are one matrix product in the base, and gate and up are one. The changes of their parts become
one product with the common input, ``[A_q; A_k; A_v]``, and one with a block matrix that has each part's B in its rows:

    y + [B_q 0 0; 0 B_k 0; 0 0 B_v] [A_q; A_k; A_v] x

The blocks of zeros cost ``parts`` times the second product's operations, which at usual ranks take less time than
copies of the output would.

Shape letters: S sequence, R rows, G groups, K rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from llama_scale.extensions.adapter import LayerAdapter, LowRank


@dataclass(frozen=True, slots=True)
class Fused:
    """How the parts of a projection lie in its output ``[S, R, G * (sum of widths)]``: group by group, then by part.

    Args:
        parts: Linear layer -> width of its output in one group.
        groups: G; keys and values have one head a group.
    """

    parts: Mapping[str, int]
    groups: int = 1


def low_rank_changes(adapter: LayerAdapter, targets: Sequence[str]) -> dict[str, LowRank] | None:
    """Return an adapter's changes of these targets; None if one of them has another form."""
    found = {target: adapter.low_rank(target) for target in targets}
    changes = {target: change for target, change in found.items() if change is not None}
    return changes if len(changes) == len(found) else None


def apply_changes(
    adapter: LayerAdapter, changes: Mapping[str, LowRank], x: torch.Tensor, y: torch.Tensor, *, fused: Fused
) -> torch.Tensor:
    """Return a fused projection's output with the changes of its parts.

    Args:
        adapter: Whose they are.
        changes: Target -> change; targets without one stay as they are.
        x: Input ``[S, R, in]``, whole.
        y: Output ``[S, R, out]``, local.
        fused: How the parts lie in it.
    """
    chosen = [changes[target] for target in fused.parts if target in changes]
    a = torch.cat([change.a for change in chosen])
    b = _block_matrix(changes, fused, like=a)
    low = adapter.context.tensor.enter(F.linear(x.to(a.dtype), a))
    result = torch.addmm(y.to(a.dtype).flatten(0, 1), low.flatten(0, 1), b.t()).unflatten(0, y.shape[:2])
    if any(change.factor is not None for change in chosen):
        result = result * _factors(changes, fused, like=a)
    return result.to(y.dtype)


def _block_matrix(changes: Mapping[str, LowRank], fused: Fused, *, like: torch.Tensor) -> torch.Tensor:
    """Return ``[out, K of all changes]``: each part's rows have its scaled B in its own columns."""
    blocks = []
    before, total = 0, like.shape[0]
    for target, width in fused.parts.items():
        change = changes.get(target)
        if change is None:
            blocks.append(like.new_zeros(fused.groups, width, total))
            continue
        rank = change.b.shape[1]
        own = (change.b * change.scale).view(fused.groups, width, rank)
        blocks.append(F.pad(own, (before, total - before - rank)))
        before += rank
    return torch.cat(blocks, dim=1).flatten(0, 1)


def _factors(changes: Mapping[str, LowRank], fused: Fused, *, like: torch.Tensor) -> torch.Tensor:
    """Return the factor of each output, ``[out]``."""
    parts = []
    for target, width in fused.parts.items():
        change = changes.get(target)
        factor = None if change is None else change.factor
        parts.append(like.new_ones(fused.groups, width) if factor is None else factor.view(fused.groups, width))
    return torch.cat(parts, dim=1).flatten()
