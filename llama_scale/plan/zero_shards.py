"""How DeepSpeed's ZeRO divides a rank's parameters over replicas, padding included.

Source: DeepSpeed 0.17 to 0.19. ZeRO 1 and 2 flatten each of the optimizer's groups (matrices, and vectors that are not
decayed), padded to twice the replicas (``nccl_start_alignment_factor`` in ``stage_1_and_2.py``, ``bf16_optimizer.py``);
ZeRO 3 divides each parameter by itself, rounded up (``partition_parameters.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llama_scale.plan.buckets import module_order
from llama_scale.plan.parameters import RankParameter

_ALIGNMENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShards:
    """Elements of one rank.

    Args:
        whole: All parameters with the padding that their flat copies have.
        share: What one replica updates.
        touched: Parameters of which the replica updates a part, whole; of the replica that has most.
        kept: ZeRO 3: parameters that are too small to be divided; every rank has them whole beside its share.
    """

    whole: int
    share: int
    touched: int
    kept: int = 0


def zero_shards(parameters: Iterable[RankParameter], *, stage: int, dp_size: int, persistence: int) -> ZeroShards:
    """Return how ZeRO divides parameters.

    Args:
        parameters: The rank's parameters before they are divided, in the order of the table.
        stage: 1, 2 or 3.
        dp_size: Replicas.
        persistence: ZeRO 3 keeps parameters of at most so many elements.
    """
    known = list(parameters)
    if stage == 3:
        share = sum(-(-p.numel // dp_size) for p in known)
        return ZeroShards(
            whole=share, share=share, touched=share, kept=sum(p.numel for p in known if p.numel <= persistence)
        )
    # Vectors are the norms' weights, which tensor parallel ranks hold alike.
    whole = 0
    touched = [0] * dp_size
    for vectors in (False, True):
        numels = [p.numel for p in module_order(known) if p.replicated is vectors]
        padded = _round_up(sum(numels), _ALIGNMENT * dp_size)
        whole += padded
        part, start = padded // dp_size, 0
        for numel in numels:
            for rank in range(start // part, (start + numel - 1) // part + 1):
                touched[rank] += numel
            start += numel
    return ZeroShards(whole=whole, share=whole // dp_size, touched=max(touched))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
