"""The ledger finds what was used twice, left out, or written twice."""

from __future__ import annotations

import pytest

from llama_scale.convert.ledger import Ledger
from llama_scale.errors import ConvertError
from llama_scale.layout.boxes import Box


def ledger() -> Ledger:
    return Ledger(sources={"s": (4, 3)}, targets={"t": (4, 3)})


def copy(book: Ledger, source: Box, target: Box) -> None:
    book.copy(source="s", source_box=source, target="t", target_box=target)


def test_a_full_copy_balances_and_is_reported():
    book = ledger()
    copy(book, Box((0, 0), (2, 3)), Box((2, 0), (2, 3)))
    copy(book, Box((2, 0), (2, 3)), Box((0, 0), (2, 3)))
    book.digest_source("s", "sha256:00")
    book.ignore("extra", "a buffer")
    book.balance()
    report = book.report()
    assert report["counts"] == {
        "source_tensors": 1,
        "source_elements": 12,
        "target_tensors": 1,
        "target_elements": 12,
        "copies": 2,
        "ignored": 1,
    }
    assert report["sources"] == {"s": {"shape": [4, 3], "slices": 2, "digest": "sha256:00"}}
    assert report["ignored"] == {"extra": "a buffer"}


def test_a_source_left_out_is_named():
    book = ledger()
    copy(book, Box((0, 0), (3, 3)), Box((0, 0), (3, 3)))
    with pytest.raises(ConvertError, match=r"source s: 3 of 12 elements are in no box\n  target t: 3 of 12"):
        book.balance()


def test_a_source_used_twice_is_found_although_the_count_is_right():
    book = ledger()
    copy(book, Box((0, 0), (2, 3)), Box((0, 0), (2, 3)))
    copy(book, Box((1, 0), (2, 3)), Box((2, 0), (2, 3)))
    with pytest.raises(ConvertError, match=r"source s: boxes .* and .* overlap$"):
        book.balance()


def test_a_target_outside_its_tensor_is_found():
    book = ledger()
    copy(book, Box((0, 0), (4, 3)), Box((1, 0), (4, 3)))
    with pytest.raises(ConvertError, match=r"target t: box \(1, 0\)\+\(4, 3\) leaves the tensor of shape \(4, 3\)"):
        book.balance()


def test_many_faults_are_counted():
    names = {f"n{i}": (1,) for i in range(12)}
    with pytest.raises(ConvertError, match=r"\.\.\. 14 more"):
        Ledger(sources=names, targets=names).balance()


def test_copies_that_cannot_be_are_refused():
    book = ledger()
    with pytest.raises(ConvertError, match="knows no copy from 'x' to 't'"):
        book.copy(source="x", source_box=Box((0,), (1,)), target="t", target_box=Box((0,), (1,)))
    with pytest.raises(ConvertError, match="another number of elements"):
        copy(book, Box((0, 0), (1, 3)), Box((0, 0), (2, 3)))
