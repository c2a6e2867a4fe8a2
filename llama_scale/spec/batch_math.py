"""Batch arithmetic: global = micro x accumulation x data parallel, exactly; never floored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.nearby import divisors, either, multiples_around

if TYPE_CHECKING:
    from llama_scale.spec.batch import Batch

Triple = tuple[int, int, int]
"""global, micro, accumulation."""


def solve_batch(batch: Batch, *, dp_size: int) -> tuple[Triple | None, list[Problem]]:
    """Return all three sizes, or what keeps the third from being derived."""
    total, micro, accumulation = batch.global_, batch.micro, batch.accumulation
    given = [key for key, value in _named(batch) if value is not None]
    if len(given) < 2:
        have = f"only {given[0]}" if given else "none of them"
        return None, [
            _problem(
                (), f"two of global, micro and accumulation are needed; {have} is given",
                f"add {' or '.join(k for k, v in _named(batch) if v is None)}; the third follows from "
                f"global = micro x accumulation x data (data={dp_size})", "batch-incomplete",
            )
        ]  # fmt: skip
    if total is None:
        assert micro is not None and accumulation is not None
        total = micro * accumulation * dp_size
    elif micro is None:
        assert accumulation is not None
        if total % (accumulation * dp_size):
            return None, [_indivisible(total, "accumulation", accumulation, dp_size)]
        micro = total // (accumulation * dp_size)
    elif accumulation is None:
        if total % (micro * dp_size):
            return None, [_indivisible(total, "micro", micro, dp_size)]
        accumulation = total // (micro * dp_size)
    elif micro * accumulation * dp_size != total:
        return None, [_contradiction(total, micro, accumulation, dp_size)]
    return (total, micro, accumulation), []


def _named(batch: Batch) -> tuple[tuple[str, int | None], ...]:
    return (("global", batch.global_), ("micro", batch.micro), ("accumulation", batch.accumulation))


def _indivisible(total: int, key: str, size: int, dp_size: int) -> Problem:
    step = size * dp_size
    near = multiples_around(total, step)
    return _problem(
        ("global",),
        f"global={total} is not a multiple of {key} x data = {size} x {dp_size} = {step}",
        f"nearest valid global: {either(near)}",
        "batch-divisible",
    )


def _contradiction(total: int, micro: int, accumulation: int, dp_size: int) -> Problem:
    product = micro * accumulation * dp_size
    triples = nearest_triples(total, micro, accumulation, dp_size=dp_size)
    shown = ", ".join(f"(global={g}, micro={m}, accumulation={a})" for g, m, a in triples)
    return _problem(
        ("global",),
        f"global={total}, but micro x accumulation x data = {micro} x {accumulation} x {dp_size} = {product}",
        f"leave one of the three out, or use one of the nearest valid: {shown}",
        "batch-contradiction",
    )


def nearest_triples(total: int, micro: int, accumulation: int, *, dp_size: int) -> list[Triple]:
    """Return the valid (global, micro, accumulation) nearest to what was asked: one changed number first."""
    found = list(dict.fromkeys(_candidates(total, micro, accumulation, dp_size)))

    def distance(triple: Triple) -> tuple[int, float]:
        asked = (total, micro, accumulation)
        changed = sum(a != b for a, b in zip(triple, asked, strict=True))
        ratios = (max(a, b) / min(a, b) for a, b in zip(triple, asked, strict=True))
        return changed, sum(ratios)

    return sorted(found, key=distance)[:3]


def _candidates(total: int, micro: int, accumulation: int, dp_size: int) -> Iterator[Triple]:
    yield micro * accumulation * dp_size, micro, accumulation
    if total % (micro * dp_size) == 0:
        yield total, micro, total // (micro * dp_size)
    if total % (accumulation * dp_size) == 0:
        yield total, total // (accumulation * dp_size), accumulation
    for step, keep_micro in ((micro * dp_size, True), (accumulation * dp_size, False)):
        for count in {max(1, total // step), total // step + 1}:
            yield (count * step, micro, count) if keep_micro else (count * step, count, accumulation)
    if total % dp_size == 0:
        per_replica = total // dp_size
        near = min((m for m in divisors(per_replica)), key=lambda m: (abs(m - micro), m))
        yield total, near, per_replica // near


def _problem(path: tuple[str, ...], message: str, hint: str, code: str) -> Problem:
    return Problem(path=("batch", *path), message=message, hint=hint, code=code)
