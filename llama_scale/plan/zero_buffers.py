"""What DeepSpeed's ZeRO holds beside model states: buckets of gradients, their copies in flight, gathered weights.

Source: DeepSpeed 0.17 to 0.19, with the settings that ``engines/deepspeed.py`` writes (both bucket sizes are
``engine.bucket_elements``, gradients are contiguous) and its defaults for the rest. ``allgather_bucket_size`` takes no
memory: updated weights are gathered in place, as one collective a group (``utils.py``, ``all_gather_dp_groups``).
"""

from __future__ import annotations

from dataclasses import dataclass

PREFETCH_ELEMENTS = 50_000_000
"""``stage3_prefetch_bucket_size``: weights that are gathered ahead."""

REUSE_ELEMENTS = 1_000_000_000
"""``stage3_max_reuse_distance``: weights that are used again within so many elements stay gathered. Where the forward
pass turns into the backward pass, these are the last layers of half that size."""


_FALLBACK_ELEMENTS = 500_000_000
"""``engine.py``, ``MEMORY_OPT_ALLREDUCE_SIZE``: gradients that are summed at once where ZeRO has no bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Buckets of gradients.

    Args:
        elements: Elements of one.
        overlap: Gradients are sent while others are computed.
        untouched_free: Memory counts when it is first written, as on CPUs, not when it is allocated.
    """

    elements: int
    overlap: bool
    untouched_free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroCase:
    """What the bytes of buckets depend on.

    Args:
        stage: 0 to 3.
        dp_size: Ranks that states are divided over.
        trained: Elements with gradients on a rank before they are divided.
        weight_bytes: Bytes of a weight that trains, and of its gradient as autograd makes it.
        gradient_bytes: Bytes of a gradient where it is summed and sent.
    """

    stage: int
    dp_size: int
    trained: int
    weight_bytes: int
    gradient_bytes: int


def bucket_bytes(buckets: Buckets, case: ZeroCase) -> int:
    """Return the bytes of gradient buckets and of the copies of a full one while it is sent."""
    return allocated_bytes(buckets, case) + sent_bytes(buckets, case) if case.trained else 0


def _has_buckets(case: ZeroCase) -> bool:
    """Tell whether gradients go through buckets: ZeRO 1 with wider gradients than weights is ``bf16_optimizer.py``."""
    return case.stage > 1 or (case.stage == 1 and case.weight_bytes == case.gradient_bytes)


def allocated_bytes(buckets: Buckets, case: ZeroCase) -> int:
    """Return the bytes of the buckets themselves, which do not depend on how much trains.

    ZeRO 1 and 2 allocate one for each backward pass, two where communication overlaps (``stage_1_and_2.py``,
    ``setup_buckets``). ZeRO 3 keeps one of the sent format (``stage3.py``, ``_setup_for_real_optimizer``).
    """
    if not _has_buckets(case):
        return 0
    count = 2 if buckets.overlap and case.stage < 3 else 1
    elements = min(buckets.elements, case.trained) if buckets.untouched_free else buckets.elements
    return count * elements * _bucket_element(case)


def sent_bytes(buckets: Buckets, case: ZeroCase) -> int:
    """Return the bytes of a full bucket's copies while it is sent.

    It is flattened by owner (``allreduce_and_scatter``; ZeRO 3: ``reduce_scatter_coalesced``), and converted where the
    formats of autograd and of the sum differ. Without buckets, parameters' gradients are joined up to a fixed size
    (``engine.py``, ``allreduce_no_retain``), and the flat ones of ``bf16_optimizer.py`` if they are no larger.
    """
    if case.dp_size == 1:
        return 0
    if not _has_buckets(case):
        joined = min(case.trained, _FALLBACK_ELEMENTS)
        return joined * case.gradient_bytes if case.stage == 0 or case.trained == joined else 0
    filled = min(buckets.elements, case.trained)
    made = case.weight_bytes if case.stage == 3 else _bucket_element(case)
    converted = case.gradient_bytes if made != case.gradient_bytes else 0
    return filled * (_bucket_element(case) + converted)


def _bucket_element(case: ZeroCase) -> int:
    """Return the bytes of a bucket's element: ZeRO 2 fills it before gradients are converted, the others afterwards."""
    return case.weight_bytes if case.stage == 2 else case.gradient_bytes


def gathered_elements(*, held: int, layer: int, whole: int, reuse: int = REUSE_ELEMENTS) -> int:
    """Return the weights that a rank of ZeRO 3 has gathered at most.

    Args:
        held: Elements of the rank's stage before they are divided.
        layer: Elements of one layer.
        whole: Elements that are gathered with the model as a whole: the output layer, whose loss multiplies by it.
        reuse: Weights that are used again within so many elements stay gathered.
    """
    return min(held, reuse // 2 + PREFETCH_ELEMENTS + layer + whole)
