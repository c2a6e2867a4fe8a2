from __future__ import annotations

import pytest
import torch

from llama_scale.train.adapting import Rows
from llama_scale.train.engine import Route
from llama_scale.train.mixture_rows import MixtureRows, branched, narrowed

GIVEN = (
    Route(adapter="a", task="t", start=0, stop=1),
    Route(adapter="x", task="search", start=1, stop=3),
    Route(adapter="b", task="u", start=3, stop=4),
)
NUMBERS = {"x": 0, "a": 1, "b": 2}


def rows_of(mixture: MixtureRows, given: tuple[Route, ...], *, rows: int, training: bool) -> list[tuple[int, ...]]:
    found = mixture.layout(given, rows=rows, training=training).rows
    return [(-1 if r.adapter is None else r.adapter, r.start, r.stop, r.source) for r in found]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [(), GIVEN])
def test_every_row_goes_through_every_adapter(given: tuple[Route, ...], training: bool) -> None:
    mixture = MixtureRows(adapters=("x", "a", "b"), numbers=NUMBERS, gated=True, per_task=False)

    found = rows_of(mixture, given, rows=4, training=training)

    assert found == [(0, 0, 4, 0), (1, 4, 8, 0), (2, 8, 12, 0), (-1, 12, 16, 0)]
    layout = mixture.layout(given, rows=4, training=training)
    assert layout.mixed == ((0, 4),) and layout.outside == ()
    assert mixture.all_adapters(training=training)


def test_rows_outside_the_mixture_keep_their_adapter() -> None:
    mixture = MixtureRows(adapters=("a", "b"), numbers=NUMBERS, gated=True, per_task=True)

    training = rows_of(mixture, GIVEN, rows=4, training=True)
    evaluation = rows_of(mixture, GIVEN, rows=4, training=False)

    assert training == [(1, 0, 1, 0), (0, 1, 3, 1), (2, 3, 4, 3), (-1, 4, 5, 0), (-1, 5, 6, 3)]
    assert evaluation == [
        (1, 0, 1, 0),
        (0, 1, 3, 1),
        (1, 3, 4, 3),
        (2, 4, 5, 0),
        (2, 5, 6, 3),
        (-1, 6, 7, 0),
        (-1, 7, 8, 3),
    ]
    layout = mixture.layout(GIVEN, rows=4, training=False)
    assert layout.mixed == ((0, 1), (3, 4))
    assert layout.outside == GIVEN[1:2]
    assert [(r.adapter, r.task, r.start, r.stop) for r in layout.routes] == [("a", "t", 0, 1), ("b", "u", 1, 2)]
    torch.testing.assert_close(layout.take(torch.arange(4)), torch.tensor([0, 3]))
    torch.testing.assert_close(layout.take(torch.arange(8).view(2, 4), dim=1), torch.tensor([[0, 3], [4, 7]]))


def test_rows_of_a_head_of_its_own_are_no_data_of_the_mixture() -> None:
    given = (GIVEN[0], Route(adapter="b", task="spans", start=1, stop=2))
    mixture = MixtureRows(
        adapters=("a", "b"), numbers=NUMBERS, gated=False, per_task=True, own_heads=frozenset(["spans"])
    )
    layout = mixture.layout(given, rows=2, training=False)

    assert layout.mixed == ((0, 1),) and layout.outside == given[1:]
    assert [(r.adapter, r.start, r.stop, r.source) for r in layout.rows] == [(1, 0, 1, 0), (2, 1, 2, 1), (2, 2, 3, 0)]


def test_micro_batch_without_rows_of_the_mixture() -> None:
    mixture = MixtureRows(adapters=("a", "b"), numbers=NUMBERS, gated=True, per_task=True)
    layout = mixture.layout((Route(adapter="x", task="search", start=0, stop=3),), rows=3, training=False)

    assert [(r.adapter, r.start, r.stop) for r in layout.rows] == [(0, 0, 3)]
    assert layout.take(torch.ones(3, 5)).shape == (0, 5)


@pytest.mark.parametrize(
    "rows",
    [
        (Rows(0, 0, 2, 0), Rows(1, 2, 4, 0), Rows(None, 4, 6, 0)),
        (Rows(0, 0, 1, 0), Rows(1, 1, 2, 1), Rows(2, 2, 3, 1)),
    ],
)
def test_branch_copies_rows_once_and_settings_of_all_rows_begin_with_the_trunks(rows: tuple[Rows, ...]) -> None:
    hidden, mask, rotation = torch.randn(5, 2, 3), torch.randn(2, 1, 4, 4) > 0, torch.randn(2, 4, 2, 3)
    sources = torch.tensor([r.source + k for r in rows for k in range(r.stop - r.start)])

    wide = branched(hidden, rows, dim=1)
    torch.testing.assert_close(wide, hidden[:, sources])
    assert branched(wide, rows, dim=1) is wide

    settings = {
        "attention_mask": branched(mask, rows, dim=0),
        "rotary_pos_emb": branched(rotation, rows, dim=2),
        "other": 1,
    }
    narrow = narrowed(settings, 2)
    torch.testing.assert_close(narrow["attention_mask"], mask)
    torch.testing.assert_close(narrow["rotary_pos_emb"], rotation)
    assert narrow["other"] == 1 and narrowed(settings, len(sources)) is settings
