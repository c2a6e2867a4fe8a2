"""Bootstrap intervals: against normal theory, for scores that are no means, and paired."""

import math

import numpy as np
import pytest

from llama_scale.evaluation.bootstrap import resamples, score


def mean_scores(values):
    return {"mean": float(np.mean(values)), "spread": float(np.max(values) - np.min(values))}


def scores_of(values, *, count=2000):
    draws = resamples(len(values), count=count, seed=7)
    return score(list(values), mean_scores, example_scores=[{"mean": v} for v in values], draws=draws)


def test_interval_of_a_mean_is_the_normal_theory_one():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = scores_of(values).interval("mean", level=0.95)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_scores_that_are_no_means_are_computed_anew_for_each_resample():
    values = [0.0, 1.0, 5.0, 9.0]
    found = scores_of(values, count=500)
    assert found.values["spread"] == 9.0
    assert set(found.drawn["spread"]) <= {0.0, 1.0, 4.0, 5.0, 8.0, 9.0}
    assert found.interval("spread", level=0.95).high == 9.0


def test_gain_is_paired():
    first = np.random.default_rng(2).normal(0.0, 10.0, 100)
    better = scores_of(first + 0.5).gain(scores_of(first), "mean", level=0.95)
    # Every example gains the same, so that the interval has no width however much examples differ.
    assert better.low == pytest.approx(0.5)
    assert better.high == pytest.approx(0.5)


def test_draws_are_the_same_for_every_model():
    assert (resamples(10, count=5, seed=3) == resamples(10, count=5, seed=3)).all()
    assert (resamples(10, count=5, seed=3) != resamples(10, count=5, seed=4)).any()
