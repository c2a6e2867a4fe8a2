"""DeepSpeed's buckets and gathered weights, and the states of runs with adapters, as the plan counts them."""

from __future__ import annotations

from typing import Any

from llama_scale.plan.zero_buffers import PREFETCH_ELEMENTS, REUSE_ELEMENTS, Buckets, ZeroCase, allocated_bytes
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import micro_batches, start_in_turn

_BUCKET = 1500
"""Elements: fewer than the model has, so that a bucket is filled."""


def _zero(stage: int, **options: Any) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 0, "bucket_elements": _BUCKET, **options}


def _held(cases: list[Case]) -> list[tuple[int, int]]:
    """Return the bytes of buckets in the backward pass, and of weights that are gathered at once."""
    found = []
    for case, engine in start_in_turn(cases):
        parameters = [p for chunk in engine.chunks for p in chunk.parameters()]
        seen = [(0, 0)]

        def look(_: Any, engine: Any = engine, parameters: Any = parameters, seen: Any = seen) -> None:
            tensors = [bucket.buffer for bucket in getattr(engine._engine.optimizer, "ipg_buckets", {}).values()]
            buffers = [t for b in tensors for t in (b if isinstance(b, list) else [b]) if t is not None]
            whole = sum(p.numel() * p.element_size() for p in parameters if p.numel() and hasattr(p, "ds_id"))
            seen.append((sum(t.numel() * t.element_size() for t in buffers), whole))

        last = engine.chunks[0].decoder.layers[-1]
        last.register_full_backward_hook(lambda *_, look=look: look(None))
        for step in range(2):
            batch = micro_batches(case, step=step, dp_rank=engine.coordinates.dp_rank)
            engine.train_step(batch, 1e-3)
        found.append((max(buckets for buckets, _ in seen), max(whole for _, whole in seen)))
    return found


_CASES = [
    Case(dp=2, compute=compute, engine=_zero(stage, overlap_comm=overlap))
    for stage, compute, overlap in (
        (1, "bf16", False), (1, "fp32", True), (2, "bf16", True), (3, "bf16", False), (3, "bf16", True),
    )
]  # fmt: skip


def test_buckets_are_as_large_as_the_settings_say() -> None:
    by_rank = run_ranks(2, _held, _CASES)

    for index, case in enumerate(_CASES):
        plan, engine = case.plan(), case.spec().engine
        assert engine.kind == "deepspeed"
        weight = 2 if case.compute == "bf16" else 4
        expected = allocated_bytes(
            Buckets(elements=_BUCKET, overlap=engine.overlap_comm),
            ZeroCase(
                stage=engine.zero, dp_size=2, trained=plan.memory[0].parameters, weight_bytes=weight, gradient_bytes=4
            ),
        )
        for found in by_rank:
            buckets, gathered = found[index]
            assert buckets == expected, case
            if engine.zero == 3:  # of so small a model nothing is released
                assert 0.5 * weight * plan.memory[0].parameters < gathered <= weight * plan.memory[0].parameters


def test_what_is_not_set_is_deepspeeds_default() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from llama_scale.engines.deepspeed import deepspeed_config

    case = _CASES[0]
    settings = deepspeed_config(case.spec(), case.plan())["zero_optimization"]
    default = DeepSpeedZeroConfig()

    assert settings["reduce_bucket_size"] == settings["allgather_bucket_size"] == _BUCKET
    assert settings["contiguous_gradients"] is True
    assert not {"stage3_prefetch_bucket_size", "stage3_max_reuse_distance", "reduce_scatter"} & set(settings)
    assert (default.prefetch_bucket_size, default.max_reuse_distance) == (PREFETCH_ELEMENTS, REUSE_ELEMENTS)
    assert default.reduce_scatter is True
