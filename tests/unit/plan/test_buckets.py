from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.buckets import divide, fill_buckets, stage_shards
from llama_scale.plan.run_plan import make_plan
from tests.unit.plan.specs import run_spec

_numels = st.lists(st.integers(1, 2000), min_size=1, max_size=12)


@given(_numels, st.integers(1, 7), st.none() | st.integers(1, 3000), st.sets(st.integers(0, 11)))
def test_buckets_hold_everything_once_in_order(
    numels: list[int], dp_size: int, bucket_size: int | None, alone: set[int]
) -> None:
    buckets = fill_buckets(numels, dp_size=dp_size, bucket_size=bucket_size, alone=frozenset(alone))

    assert [end - start for bucket in buckets for start, end in bucket.spans] == numels
    for bucket in buckets:
        assert bucket.numel % math.lcm(dp_size, 128) == 0
        assert all(start % 64 == 0 for start, _ in bucket.spans)
        assert sorted(bucket.spans) == list(bucket.spans)
        assert bucket.spans[-1][1] <= bucket.numel
    assert sum(divide(buckets, dp_size=dp_size)) == sum(numels)


def test_parameter_alone_gets_its_own_bucket() -> None:
    buckets = fill_buckets([10, 20, 30], dp_size=2, bucket_size=None, alone=frozenset({1}))

    assert [bucket.spans for bucket in buckets] == [((0, 10),), ((0, 20),), ((0, 30),)]


def test_full_bucket_is_closed() -> None:
    buckets = fill_buckets([100, 100, 100], dp_size=1, bucket_size=150)

    assert [bucket.spans for bucket in buckets] == [((0, 100), (128, 228)), ((0, 100),)]
    assert [bucket.numel for bucket in buckets] == [256, 128]


def test_rank_of_padding_holds_nothing() -> None:
    (bucket,) = fill_buckets([130], dp_size=4, bucket_size=None)

    assert divide([bucket], dp_size=4) == (64, 64, 2, 0)


def test_overlap_splits_only_the_first_chunk_of_the_first_stage() -> None:
    spec = run_spec(model={"vocab_size": 3_000_000}, pp=2)
    plan = make_plan(spec)

    def padding(pp_rank: int, overlap: bool) -> int:
        shards = stage_shards(
            plan.shape,
            plan.stages,
            pp_rank=pp_rank,
            tp_size=1,
            dp_size=3,
            vocab_pad_multiple=1,
            overlap_grad_reduce=overlap,
        )
        assert sum(shards.numels) == 3_000_000 * 32 + 4 * _LAYER + (32 if pp_rank else 0)
        return shards.padding

    # The embedding is last in the first stage's buffer and so closes a bucket of its own size either way.
    assert padding(1, overlap=True) == padding(1, overlap=False)
    assert padding(0, overlap=True) >= 0


_LAYER = 2 * 32 + 2 * (2 + 2) * 12 * 32 + 32 * 48 + 3 * 48 * 32
