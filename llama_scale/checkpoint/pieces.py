"""Pieces: the parts that a logical tensor is stored in, their names in a shard file, and their geometry.

A tensor is cut into boxes (tensor parallelism) and a box may be cut further into flat ranges of its elements in
row-major order (distributed optimizer, ZeRO). Two rules keep reading simple and make holes easy to find: the boxes
of one tensor are equal or disjoint, and the ranges inside one box are disjoint.

>>> piece = Piece(group="exp_avg", name="w", box=Box((0, 4), (2, 4)), flat_start=3, numel=5)
>>> piece.key
'exp_avg/w[0:2,4:8]@3+5'
>>> Piece.parse(piece.key) == piece
True
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box

_KEY = re.compile(r"(?P<group>[a-z_]+)/(?P<name>[^\[\]]+)\[(?P<box>[0-9:,]*)\](?:@(?P<start>\d+)\+(?P<numel>\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Name a part of one logical tensor.

    Args:
        group: Kind of tensor: ``model``, ``master``, ``exp_avg``, ``exp_avg_sq`` or ``rng``.
        name: The tensor's name inside its group.
        box: The part of the tensor this piece is, or lies in.
        flat_start: First element of the range held, counted in row-major order inside the box; None: the whole box.
        numel: Elements held.
    """

    group: str
    name: str
    box: Box
    flat_start: int | None
    numel: int

    @property
    def key(self) -> str:
        """Return the piece's name in its shard: ``group/name[start:stop,...]`` and ``@first+count`` for a range."""
        box = ",".join(f"{o}:{o + n}" for o, n in zip(self.box.offset, self.box.shape, strict=True))
        flat = "" if self.flat_start is None else f"@{self.flat_start}+{self.numel}"
        return f"{self.group}/{self.name}[{box}]{flat}"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored array: the box's, or ``[numel]`` for a flat range."""
        return self.box.shape if self.flat_start is None else (self.numel,)

    @classmethod
    def parse(cls, key: str) -> Piece:
        """Read a key back.

        Raises:
            CheckpointError: The key does not have the form ``group/name[start:stop,...]@first+count``, or its range
                does not lie in its box.
        """
        match = _KEY.fullmatch(key)
        try:
            if match is None:
                raise ValueError
            bounds = [tuple(map(int, part.split(":"))) for part in match["box"].split(",") if part]
            box = Box(tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds))
        except ValueError:
            raise CheckpointError(
                f"the tensor key {key!r} is not of the form group/name[start:stop,...]@first+count; "
                "the file was not written by llama-scale or is damaged"
            ) from None
        start = None if match["start"] is None else int(match["start"])
        numel = box.numel if start is None else int(match["numel"])
        if any(n < 0 for n in box.shape) or (start or 0) + numel > box.numel:
            raise CheckpointError(f"the tensor key {key!r} names a range outside its box; the file is damaged")
        return cls(group=match["group"], name=match["name"], box=box, flat_start=start, numel=numel)

    def sub_boxes(self) -> Iterator[tuple[Box, int]]:
        """Cut what the piece holds into boxes of the whole tensor; see ``range_boxes``."""
        if self.flat_start is None:
            yield self.box, 0
        else:
            yield from range_boxes(self.box, start=self.flat_start, numel=self.numel)


def range_boxes(box: Box, *, start: int, numel: int) -> Iterator[tuple[Box, int]]:
    """Cut a flat range of a box's elements (row-major) into the fewest boxes, in order.

    Args:
        box: The box.
        start: First element of the range.
        numel: Elements of the range; ``start + numel <= box.numel``.

    Yields:
        ``(part, at)``: a box in the tensor's own indices, and where its elements start inside the range. At most
        ``2 * dims - 1`` parts; the elements of each are consecutive in the range.
    """
    if numel == 0:
        return
    if not box.shape:
        yield box, 0
        return
    row = math.prod(box.shape[1:])
    first, stop = start, start + numel
    at = 0
    while first < stop:
        index, within = divmod(first, row)
        if within == 0 and stop - first >= row:
            rows = (stop - first) // row
            yield Box((box.offset[0] + index, *box.offset[1:]), (rows, *box.shape[1:])), at
            taken = rows * row
        else:
            taken = min(row - within, stop - first)
            inner = Box(box.offset[1:], box.shape[1:])
            for part, part_at in range_boxes(inner, start=within, numel=taken):
                yield Box((box.offset[0] + index, *part.offset), (1, *part.shape)), at + part_at
        first += taken
        at += taken


def check_cover(shape: tuple[int, ...], pieces: Iterable[Piece]) -> None:
    """Check that pieces of one tensor hold each of its elements exactly once.

    Args:
        shape: Shape of the whole tensor.
        pieces: All pieces that are stored of it.

    Raises:
        CheckpointError: An element is missing or stored twice, or a piece lies outside the tensor.
    """
    whole = Box.whole(shape)
    ranges: dict[Box, list[Piece]] = defaultdict(list)
    held = 0
    label = ""
    for piece in pieces:
        label = f"{piece.group}/{piece.name}"
        if len(piece.box.shape) != len(shape) or whole.intersect(piece.box) != piece.box:
            raise CheckpointError(f"the piece {piece.key} lies outside its tensor of shape {list(shape)}")
        ranges[piece.box].append(piece)
        held += piece.numel
    _check_disjoint_boxes(list(ranges))
    for members in ranges.values():
        members.sort(key=lambda p: p.flat_start or 0)
        for one, two in itertools.pairwise(members):
            if (one.flat_start or 0) + one.numel > (two.flat_start or 0):
                raise CheckpointError(f"the pieces {one.key} and {two.key} hold the same elements")
    if held != whole.numel:
        raise CheckpointError(
            f"only {held} of the {whole.numel} elements of {label or 'the tensor'} {list(shape)} are stored; "
            "a rank's part is missing"
        )


def _check_disjoint_boxes(boxes: list[Box]) -> None:
    for i, one in enumerate(boxes):
        for two in boxes[i + 1 :]:
            if one.intersect(two) is not None:
                raise CheckpointError(f"the pieces {one} and {two} of one tensor overlap without being equal")
