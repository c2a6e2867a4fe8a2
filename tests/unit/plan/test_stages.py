from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.errors import SpecError
from llama_scale.plan.stages import layer_counts, make_stages


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_layers_appear_once_in_model_order(pp_size: int, vp_size: int, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 4), min_size=pp_size * vp_size, max_size=pp_size * vp_size))

    stages = make_stages(sum(counts), pp_size=pp_size, vp_size=vp_size, stage_layers=counts)

    in_order = [stages[index % pp_size][index // pp_size] for index in range(pp_size * vp_size)]
    assert [layer for chunk in in_order for layer in chunk.layers] == list(range(sum(counts)))
    assert [chunk.has_embedding for chunk in in_order] == [True] + [False] * (len(in_order) - 1)
    assert [chunk.has_head for chunk in in_order] == [False] * (len(in_order) - 1) + [True]


def test_virtual_stages_interleave_as_megatron_does() -> None:
    stages = make_stages(8, pp_size=2, vp_size=2)

    assert [[chunk.layers for chunk in stage] for stage in stages] == [[(0, 1), (4, 5)], [(2, 3), (6, 7)]]


def test_uneven_stages_take_the_given_counts() -> None:
    stages = make_stages(7, pp_size=3, stage_layers=(2, 3, 2))

    assert [stage[0].layers for stage in stages] == [(0, 1), (2, 3, 4), (5, 6)]


@pytest.mark.parametrize(
    ("pp_size", "vp_size", "text"),
    [
        (3, 1, r"pipeline=3 does not divide num_layers=8; use pipeline 1, 2, 4, 8, or give parallel.stage_layers"),
        (2, 3, r"pipeline=2 x virtual_stages=3 does not divide num_layers=8; use virtual_stages 1, 2, 4, or give"),
        (3, 2, r"pipeline=3 x virtual_stages=2 does not divide num_layers=8; use pipeline 1, 2, 4, or give"),
        (3, 16, r"pipeline=3 x virtual_stages=16 does not divide num_layers=8; use pipeline none, or give"),
    ],
)
def test_layers_that_do_not_divide_are_refused_with_valid_degrees(pp_size: int, vp_size: int, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        layer_counts(8, pp_size=pp_size, vp_size=vp_size)


@pytest.mark.parametrize(
    ("counts", "codes"),
    [
        ((4, 4, 0), {"stage-layers-length", "stage-layers-positive"}),
        ((4, 3), {"stage-layers-sum"}),
        ((9, -1), {"stage-layers-positive"}),
        ((), {"stage-layers-length", "stage-layers-sum"}),
    ],
)
def test_wrong_stage_layers_are_all_named(counts: tuple[int, ...], codes: set[str]) -> None:
    with pytest.raises(SpecError) as caught:
        layer_counts(8, pp_size=2, stage_layers=counts)

    assert {problem.code for problem in caught.value.problems} == codes
    assert all(str(list(counts)) in problem.message for problem in caught.value.problems)
