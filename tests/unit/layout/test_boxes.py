from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llama_scale.layout.boxes import Box

_boxes = st.builds(
    Box, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.tuples(st.integers(0, 4), st.integers(0, 4))
)


def _cells(box: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))))


@given(_boxes, _boxes)
def test_intersection_holds_the_common_cells(a: Box, b: Box) -> None:
    common = a.intersect(b)

    assert (set() if common is None else _cells(common)) == _cells(a) & _cells(b)
    assert common is None or common.numel > 0


@given(_boxes, _boxes)
def test_slices_select_the_inner_box(a: Box, b: Box) -> None:
    common = a.intersect(b)
    if common is None:
        return

    picked = itertools.product(*(range(n)[s] for n, s in zip(b.shape, common.slices_within(b), strict=True)))

    assert {tuple(o + i for o, i in zip(b.offset, index, strict=True)) for index in picked} == _cells(common)


def test_whole_box_covers_the_shape() -> None:
    assert Box.whole((2, 3)) == Box((0, 0), (2, 3))
    assert Box.whole((2, 3)).numel == 6
