"""Memory of workloads: monotone in what it must be monotone in, and in three metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from llama_scale.plan.constants import DEFAULT
from llama_scale.plan.run_memory import run_memory
from llama_scale.plan.workload import Workload
from tests.unit.plan.workloads import hardware, workload, workloads

GIB = 1 << 30


@given(workloads())
def test_recomputing_more_never_needs_more(one: Workload) -> None:
    none, selective, full = (
        run_memory(replace(one, parallel=replace(one.parallel, recompute=kind))).used
        for kind in ("none", "selective", "full")
    )
    assert full <= selective * (1 + 1e-9)
    assert selective <= none * (1 + 1e-9)


@given(workloads())
def test_a_larger_micro_batch_never_needs_less(one: Workload) -> None:
    # The global batch grows with it, so that as many micro-batches are in flight.
    twice = replace(one, micro_batch=2 * one.micro_batch, global_batch=2 * one.global_batch)
    assert run_memory(twice).used >= run_memory(one).used


@given(workloads())
def test_sharding_more_never_needs_more_states(one: Workload) -> None:
    def states(kind: str) -> float:
        memory = run_memory(replace(one, parallel=replace(one.parallel, sharding=kind)))
        return memory.weights + memory.gradients + memory.optimizer

    assert states("zero3") <= states("zero2") <= states("zero1") <= states("none")


def test_metrics_nest() -> None:
    memory = run_memory(workload())
    assert memory.allocated < memory.reserved < memory.used
    assert memory.in_metric("torch allocated GiB") == pytest.approx(memory.allocated / GIB)
    assert memory.in_metric("max_reserved GiB") == pytest.approx(memory.reserved / GIB)
    assert memory.in_metric("nvidia-smi GB") == pytest.approx(memory.used / 1e9)


def test_states_of_mixed_precision_adam_are_18_bytes() -> None:
    one = workload(tp=1, pp=1, dp=1, sharding="none", sequence=False)
    memory = run_memory(one)
    states = memory.weights + memory.gradients + memory.optimizer
    assert states == pytest.approx(18 * one.model.numel, rel=1e-5)


def test_interleaving_holds_more_on_the_first_stage() -> None:
    plain, woven = workload(pp=4, dp=4), workload(pp=4, dp=4, vp=2)
    expected = 1 + 3 / (4 * 2)  # Korthikanti et al. 2022, section 4.2.3
    layers = run_memory(woven).activations - _working(woven)
    assert layers / (run_memory(plain).activations - _working(plain)) == pytest.approx(expected, rel=0.01)


def _working(one: Workload) -> float:
    model = one.model
    return one.tokens * (3 * model.ffn / one.parallel.tp + 2 * model.hidden) * 2


def test_what_does_not_fit_is_said() -> None:
    assert run_memory(workload()).fits
    assert not run_memory(workload(tp=1, pp=1, dp=64, sequence=False, sharding="none")).fits
    assert run_memory(workload(hardware=hardware("b300"), tp=1, pp=1, dp=64, sequence=False)).fits


def test_unfused_attention_keeps_its_scores() -> None:
    flash, unfused = run_memory(workload()), run_memory(workload(attention="unfused"))
    assert unfused.activations > 2 * flash.activations
    selective = run_memory(workload(attention="unfused", recompute="selective"))
    assert selective.activations < unfused.activations


def test_the_logits_are_gathered_or_not() -> None:
    apart = run_memory(workload(pp=1, dp=16)).logits
    assert run_memory(workload(pp=1, dp=16, parallel_loss=False)).logits == pytest.approx(4 * apart)
    assert run_memory(workload(pp=1, dp=16, chunked_loss=True)).logits < 2 * GIB


def test_context_is_nvidia_smis_alone() -> None:
    memory = run_memory(workload())
    assert memory.used - memory.reserved == DEFAULT.context_gb * 1e9
