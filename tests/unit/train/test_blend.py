from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.train.blend import Blend, blend_once


def locate_all(blend: Blend, samples: int) -> list[tuple[int, int]]:
    return [blend.locate(k) for k in range(samples)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_every_prefix_is_within_one_sample_of_the_weights(weights: list[int]) -> None:
    blend = Blend([float(weight) for weight in weights])
    counts = [0] * len(weights)
    total = sum(weights)
    for k, (part, local) in enumerate(locate_all(blend, 2 * total + 3)):
        assert local == counts[part]  # each part's own samples come in order, none left out
        counts[part] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count * total - (k + 1) * weight) < total


def test_decimal_weights_are_exact_however_they_are_scaled() -> None:
    small, large = Blend([0.7, 0.1, 0.2]), Blend([7.0, 1.0, 2.0])
    assert small.period == large.period == 10
    assert locate_all(small, 50) == locate_all(large, 50)


def test_far_samples_are_located_without_walking_there() -> None:
    blend = Blend([3.0, 1.0])
    part, local = blend.locate(4 * 10**15 + 1)
    first, first_local = blend.locate(1)
    assert part == first
    assert local == first_local + [3, 1][part] * 10**15


def test_awkward_weights_are_rounded_to_a_short_period() -> None:
    blend = Blend([0.123456789, 0.987654321, 1e-9])
    assert blend.period <= 2**18 + 2
    shares = [0, 0, 0]
    for part, _ in locate_all(blend, 20000):
        shares[part] += 1
    total = 0.123456789 + 0.987654321
    assert shares[0] == pytest.approx(20000 * 0.123456789 / total, abs=1.1)


def test_one_part_gets_everything() -> None:
    assert locate_all(Blend([0.3]), 3) == [(0, 0), (0, 1), (0, 2)]


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.7, 1.0, 40.0]), st.integers(1, 20)), min_size=1, max_size=5),
    st.integers(0, 120),
)
def test_blend_once_takes_each_sample_at_most_once_and_by_weight(parts: list[tuple[float, int]], limit: int) -> None:
    weights, sizes = [weight for weight, _ in parts], [size for _, size in parts]

    rows = blend_once(weights, sizes, limit=limit)

    assert len(rows) == min(limit, sum(sizes))
    for part, size in enumerate(sizes):
        own = [local for number, local in rows if number == part]
        assert own == list(range(len(own))) and len(own) <= size
    # The blend itself, as long as no part is used up.
    blend = Blend(weights)
    for row, expected in zip(rows, locate_all(blend, len(rows)), strict=True):
        if expected[1] >= sizes[expected[0]]:
            break
        assert row == expected


def test_blend_once_is_quick_where_a_light_part_has_nearly_everything() -> None:
    assert len(blend_once([1.0, 1e-6], [3, 10**6], limit=1000)) == 1000
