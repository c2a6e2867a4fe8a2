"""Ranks and their coordinates, in Megatron-Core's order: tensor innermost, then data, pipeline outermost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Axis = Literal["tp", "dp", "pp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """The place of one rank: its number along each axis of the mesh."""

    dp_rank: int
    pp_rank: int
    tp_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The mesh of processes; ``rank = tp_rank + tp_size * (dp_rank + dp_size * pp_rank)``.

    Source: Megatron-Core ``parallel_state.initialize_model_parallel(order="tp-cp-ep-dp-pp")``; DeepSpeed's
    ``PipeModelDataParallelTopology`` (axes pipe, data, model) is the same order.
    """

    dp_size: int
    tp_size: int
    pp_size: int

    def __post_init__(self) -> None:
        for name in ("dp_size", "tp_size", "pp_size"):
            assert getattr(self, name) >= 1, f"{name} must be positive"

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.dp_size * self.tp_size * self.pp_size

    def rank(self, *, dp_rank: int, pp_rank: int, tp_rank: int) -> int:
        """Return the global rank at these coordinates.

        Raises:
            IndexError: a coordinate lies outside its axis.
        """
        for axis, value, size in (
            ("dp", dp_rank, self.dp_size),
            ("pp", pp_rank, self.pp_size),
            ("tp", tp_rank, self.tp_size),
        ):
            if not 0 <= value < size:
                raise IndexError(f"{axis}_rank={value} lies outside 0..{size - 1}")
        return tp_rank + self.tp_size * (dp_rank + self.dp_size * pp_rank)

    def coordinates(self, rank: int) -> Coordinates:
        """Return the coordinates of a global rank; the inverse of :meth:`rank`.

        Raises:
            IndexError: the rank lies outside the world.
        """
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank={rank} lies outside 0..{self.world_size - 1}")
        rest, tp_rank = divmod(rank, self.tp_size)
        pp_rank, dp_rank = divmod(rest, self.dp_size)
        return Coordinates(dp_rank=dp_rank, pp_rank=pp_rank, tp_rank=tp_rank)

    def groups(self, axis: Axis) -> tuple[tuple[int, ...], ...]:
        """Return the communication groups along one axis, each in the axis' order, groups by their first rank.

        Members of a group differ in this coordinate only; the groups partition the world.
        """
        size = {"tp": self.tp_size, "dp": self.dp_size, "pp": self.pp_size}[axis]
        stride = {"tp": 1, "dp": self.tp_size, "pp": self.tp_size * self.dp_size}[axis]
        return tuple(
            tuple(first + stride * member for member in range(size)) for first in self._first_ranks(size, stride)
        )

    def _first_ranks(self, size: int, stride: int) -> Iterator[int]:
        for block in range(0, self.world_size, size * stride):
            yield from range(block, block + stride)
