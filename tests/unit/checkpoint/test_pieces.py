import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.checkpoint.pieces import Piece, check_cover, range_boxes
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from tests.unit.checkpoint.cuts import boxes, shapes


def piece(box: Box, flat: tuple[int, int] | None = None) -> Piece:
    start, numel = flat if flat else (None, box.numel)
    return Piece(group="model", name="w", box=box, flat_start=start, numel=numel)


@given(st.data())
def test_range_boxes_are_the_range_in_order(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    box = data.draw(boxes(shape).flatmap(st.sampled_from))
    start = data.draw(st.integers(0, box.numel))
    numel = data.draw(st.integers(0, box.numel - start))
    whole = torch.arange(Box.whole(shape).numel).view(shape)
    expected = whole[box.slices_within(Box.whole(shape))].reshape(-1)[start : start + numel]

    parts = list(range_boxes(box, start=start, numel=numel))

    found = [whole[part.slices_within(Box.whole(shape))].reshape(-1) for part, _ in parts]
    assert torch.equal(torch.cat([*found, torch.empty(0, dtype=torch.int64)]), expected)
    assert [at for _, at in parts] == [sum(p.numel for p, _ in parts[:i]) for i in range(len(parts))]
    assert len(parts) <= 2 * len(shape) - 1


def test_range_boxes_of_a_scalar() -> None:
    assert list(range_boxes(Box((), ()), start=0, numel=1)) == [(Box((), ()), 0)]


@given(st.data())
def test_key_is_read_back(data: st.DataObject) -> None:
    box = data.draw(shapes.flatmap(boxes).flatmap(st.sampled_from))
    start = data.draw(st.none() | st.integers(0, box.numel))
    numel = box.numel if start is None else data.draw(st.integers(0, box.numel - start))
    one = Piece(group="exp_avg_sq", name="decoder.layers.3.a.weight", box=box, flat_start=start, numel=numel)
    assert Piece.parse(one.key) == one


def test_scalar_key_is_read_back() -> None:
    one = piece(Box((), ()))
    assert one.key == "model/w[]"
    assert Piece.parse(one.key) == one


@pytest.mark.parametrize(
    "key", ["w", "model/w", "model/w[0:2", "model/w[0]", "model/w[0:1:2]", "model/w[0:2]@3", "", "m/w[a:b]", "m/w[:]"]
)
def test_key_of_another_form_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match="is not of the form group/name"):
        Piece.parse(key)


@pytest.mark.parametrize("key", ["model/w[2:0]", "model/w[0:2]@1+2", "model/w[0:2]@3+0"])
def test_key_outside_its_box_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match="range outside its box"):
        Piece.parse(key)


@given(st.data())
def test_any_cut_covers_and_any_missing_piece_is_found(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    pieces = [piece(box) for box in data.draw(boxes(shape))]
    check_cover(shape, pieces)
    lost = data.draw(st.integers(0, len(pieces) - 1))
    with pytest.raises(CheckpointError, match=r"only \d+ of the \d+ elements"):
        check_cover(shape, pieces[:lost] + pieces[lost + 1 :])
    with pytest.raises(CheckpointError, match="hold the same elements"):
        check_cover(shape, [*pieces, pieces[lost]])


def test_overlapping_boxes_are_refused() -> None:
    with pytest.raises(CheckpointError, match="overlap without being equal"):
        check_cover((4,), [piece(Box((0,), (3,))), piece(Box((2,), (2,)))])


def test_overlapping_ranges_are_refused() -> None:
    box = Box((0,), (4,))
    with pytest.raises(CheckpointError, match=r"w\[0:4\]@0\+3 and model/w\[0:4\]@2\+2 hold the same elements"):
        check_cover((4,), [piece(box, (2, 2)), piece(box, (0, 3))])


@pytest.mark.parametrize("box", [Box((2,), (3,)), Box((0, 0), (2, 2))])
def test_piece_outside_its_tensor_is_refused(box: Box) -> None:
    with pytest.raises(CheckpointError, match=r"lies outside its tensor of shape \[4\]"):
        check_cover((4,), [piece(box)])
