"""EM: on fixed data the likelihood never falls, on every kind of engine and with steps that are far too large."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.test_mixture import batches, mixture_case, zero

STEPS = 20
ROUNDING = 1e-7
"""Relative: an engine's loss of training and that of evaluation may be summed in another order."""


def likelihoods(case: Case) -> tuple[list[float], int]:
    """Return the loss before each of the steps on one batch and after the last, and how many updates were refused."""
    from tests.engines.training import start

    engine = start(case)
    batch = batches(case, step=0, dp_rank=engine.coordinates.dp_rank)
    restore, refused = engine._before.restore, []
    engine._before.restore = lambda *a, **k: (refused.append(1), restore(*a, **k))
    losses = [engine.train_step(batch, case.spec().optimizer.lr).loss for _ in range(STEPS)]
    return [*losses, engine.evaluate(batch).mean], len(refused)


def em_case(weights: str, **fields: Any) -> Case:
    return mixture_case(weights, "em", **{"global_batch": 4, "optimizer": {"lr": 1.0}, **fields})


CASES = {
    "ddp": em_case("prior", dp=2, engine={"kind": "ddp"}),
    "megatron-distopt": em_case("posterior", dp=2, distributed_optimizer=True),
    "megatron-tp2": em_case("gate", tp=2),
    "zero1-bf16": em_case("prior", dp=2, compute="bf16", engine=zero(1)),
    "zero3": em_case("posterior", dp=2, engine=zero(3)),
    "pipeline": em_case("gate", pp=2, engine=zero(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_likelihood_never_falls(name: str) -> None:
    results = run_ranks(CASES[name].world_size, likelihoods, CASES[name])
    losses, refused = results[0]

    assert all(result == results[0] for result in results)
    for before, after in itertools.pairwise(losses):
        assert after <= before * (1 + ROUNDING)
    assert losses[-1] < losses[0] - 0.02
    assert refused, "the learning rate is not too large: nothing had to be undone"


def gradients(case: Case) -> tuple[float, float]:
    from tests.engines.training import start

    engine = start(case)
    result = engine.train_step(batches(case, step=0, dp_rank=0), 1e-9)
    return result.loss, result.grad_norm


def test_first_gradient_is_that_of_the_likelihood() -> None:
    # Fisher's identity: at the parameters of the E-step, both objectives have one gradient.
    joint, em = (run_ranks(1, gradients, mixture_case("posterior", objective))[0] for objective in ("joint", "em"))
    assert em == pytest.approx(joint, rel=1e-6)
