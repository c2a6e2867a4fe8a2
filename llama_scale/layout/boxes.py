"""Boxes: axis-aligned pieces of a tensor, the geometry of every shard."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular piece of a tensor: ``offset[d] <= index[d] < offset[d] + shape[d]`` for every dim d."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 0 if any extent is 0."""
        return math.prod(self.shape)

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the box that covers a tensor of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    def intersect(self, other: Box) -> Box | None:
        """Return the common part, or None if there is none."""
        offset = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        stop = tuple(
            min(a + n, b + m) for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )
        shape = tuple(e - o for o, e in zip(offset, stop, strict=True))
        return Box(offset, shape) if all(n > 0 for n in shape) else None

    def slices_within(self, outer: Box) -> tuple[slice, ...]:
        """Return the index that selects this box from a tensor that holds ``outer``."""
        return tuple(slice(o - u, o - u + n) for o, n, u in zip(self.offset, self.shape, outer.offset, strict=True))
