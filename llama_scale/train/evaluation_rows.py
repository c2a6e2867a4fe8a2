"""Who reads which rows of an evaluation when: every row exactly once, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import BatchPlan

GROUP = 8
"""Rows whose losses a task's own head may join in an evaluation (in-batch negatives)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of one group in one micro-batch.

    Args:
        rows: Their places among the rows of the evaluation.
        continues: The group has more rows in the next micro-batch.
    """

    rows: range
    continues: bool


def deal(
    count: int, *, batch: BatchPlan, dp_rank: int, dp_size: int, group: int = 1
) -> Iterator[list[tuple[Piece, ...]]]:
    """Deal rows out to a replica in groups of neighbours, each of which is one replica's.

    Rows ``group * g`` to ``group * (g + 1) - 1`` are group g; the last one may be smaller. Groups go to the replicas in
    turn, so that which rows are joined depends neither on the replicas nor on the sizes of batches.

    Args:
        count: Rows of the evaluation.
        batch: Sizes of the run's batches.
        dp_rank: The replica.
        dp_size: Replicas.
        group: Rows of a group.

    Yields:
        For each call of ``Engine.evaluate`` the pieces of each micro-batch, at most ``batch.micro_batch`` rows in all.
        Every replica gets equally many calls and micro-batches, also where it has no rows.
    """
    slots = batch.accumulation * -(-group // (batch.micro_batch * batch.accumulation))
    each = slots * batch.micro_batch // group  # groups of a replica in a call
    groups = [range(first, min(count, first + group)) for first in range(0, count, group)]
    for start in range(0, len(groups), each * dp_size):
        own = groups[start : start + each * dp_size][dp_rank::dp_size]
        yield _micro_batches(own, slots=slots, micro=batch.micro_batch)


def _micro_batches(groups: list[range], *, slots: int, micro: int) -> list[tuple[Piece, ...]]:
    """Cut groups, one after the other, at the borders of micro-batches."""
    pieces: list[list[Piece]] = [[] for _ in range(slots)]
    place = 0
    for group in groups:
        done = 0
        while done < len(group):
            slot, used = divmod(place, micro)
            size = min(len(group) - done, micro - used)
            pieces[slot].append(Piece(rows=group[done : done + size], continues=done + size < len(group)))
            place, done = place + size, done + size
    return [tuple(found) for found in pieces]
