"""Join sequences to rows of a fixed length: best fit, longest first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], *, size: int) -> list[list[int]]:
    """Return which sequences share a row; each row's lengths add up to at most ``size``.

    Best-fit decreasing (Johnson, 1974: at most 11/9 of the fewest rows possible, plus 4): sequences in descending order
    of length each go into the fullest row that has room. Equal input gives equal rows.

    Args:
        lengths: Positive, at most ``size``.
        size: Length of a row.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the keys, ascending
    for number in order.tolist():
        length = int(lengths[number])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = size, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                del rooms[place]
        rows[row].append(number)
        left = room - length
        if left:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(row)
    return rows
