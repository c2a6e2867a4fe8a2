from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.parameters import RankParameter
from llama_scale.plan.zero_shards import zero_shards


def parameter(numel: int, *, vector: bool = False) -> RankParameter:
    return RankParameter(name="p", numel=numel, replicated=vector, tied_copy=False, virtual_rank=0)


_PARAMETERS = st.lists(st.builds(parameter, st.integers(1, 50), vector=st.booleans()), min_size=1, max_size=12)


def test_matrices_and_vectors_are_padded_apart() -> None:
    shards = zero_shards([parameter(9), parameter(5, vector=True)], stage=1, dp_size=2, persistence=0)

    assert (shards.whole, shards.share) == (12 + 8, 10)


def test_parameters_that_are_cut_are_touched_whole() -> None:
    shards = zero_shards([parameter(6), parameter(6), parameter(4)], stage=2, dp_size=2, persistence=0)

    assert shards.share == 8
    assert shards.touched == 12  # the first replica's 8 elements lie in two matrices of 6


def test_zero_3_rounds_each_parameter_up_and_keeps_small_ones() -> None:
    shards = zero_shards([parameter(7), parameter(3, vector=True)], stage=3, dp_size=2, persistence=3)

    assert (shards.share, shards.kept) == (4 + 2, 3)


@given(_PARAMETERS, st.sampled_from([1, 2, 3]), st.integers(1, 9))
def test_shares_hold_all_and_little_padding(parameters: list[RankParameter], stage: int, dp_size: int) -> None:
    shards = zero_shards(parameters, stage=stage, dp_size=dp_size, persistence=0)

    numel = sum(p.numel for p in parameters)
    padding = dp_size * shards.share - numel
    assert 0 <= padding <= (len(parameters) * (dp_size - 1) if stage == 3 else 2 * (2 * dp_size - 1))
    assert shards.touched >= shards.share - padding
