"""Model states of runs with adapters as the plan counts them, against the real tensors of each rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engines.harness import join, run_ranks
from tests.engines.specs import Case
from tests.engines.test_plan_activations import _kept_bytes
from tests.engines.test_plan_states import _optimizer_bytes
from tests.engines.training import micro_batches

_LORA = ({"name": "a", "kind": "lora", "options": {"rank": 3, "layers": {"last": 3}}},)


def _states(cases: list[Case]) -> list[dict[str, int]]:
    from megatron.core import parallel_state

    from llama_scale.train.engine import make_engine
    from llama_scale.train.optimizer import held_parameters

    found = []
    for case in cases:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        join(case.plan())
        engine: Any = make_engine(case.spec(), case.plan())
        engine.train_step(micro_batches(case, step=0, dp_rank=engine.coordinates.dp_rank), 1e-3)
        parameters = [p for chunk in engine.chunks for p in chunk.parameters()]
        if (pipeline := getattr(engine, "_pipeline", None)) is not None:
            parameters += pipeline.stage.fillers
        weights = [getattr(p, "ds_tensor", p) for p in parameters]
        if hasattr(engine, "_wrapped"):
            held = list(held_parameters(engine._optimizer))
            masters = sum(h.main.numel() * 4 for h in held if h.is_copy)
            moments = sum(h.state[name].numel() * 4 for h in held for name in ("exp_avg", "exp_avg_sq"))
        else:
            masters, moments = _optimizer_bytes(engine)
        found.append(
            {
                "weights": sum(t.numel() * t.element_size() for t in weights),
                "masters": masters,
                "moments": moments,
            }
        )
        engine.close()
    torch.distributed.barrier()
    return found


def _zero(stage: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 0, "bucket_elements": 100_000}


_CASES = [
    Case(dp=2, compute="bf16", adapters=_LORA),
    Case(dp=2, compute="bf16", adapters=_LORA, distributed_optimizer=True),
    Case(tp=2, adapters=_LORA),
    Case(pp=2, adapters=_LORA),
    Case(pp=2, adapters=({"name": "a", "kind": "lora", "options": {"rank": 3, "layers": {"last": 1}}},)),
    Case(dp=2, adapters=_LORA, engine={"kind": "ddp"}),
    *(Case(dp=2, compute="bf16", adapters=_LORA, engine=_zero(stage)) for stage in (1, 2, 3)),
    Case(pp=2, adapters=_LORA, engine=_zero(1)),
]


def test_bytes_of_weights_and_optimizer_equal_real_tensors() -> None:
    by_rank = run_ranks(2, _states, _CASES)

    for index, case in enumerate(_CASES):
        plan = case.plan()
        for stage, memory in enumerate(plan.memory):
            ranks = [f[index] for rank, f in enumerate(by_rank) if plan.topology.coordinates(rank).pp_rank == stage]
            planned = {name: getattr(memory.states, name) for name in ranks[0]}
            most = {name: max(found[name] for found in ranks) for name in planned}
            assert most == planned, (case, stage)


_BIG = {"hidden_size": 128, "ffn_hidden_size": 352, "num_heads": 8, "num_kv_heads": 2, "head_dim": 24}
_ACTIVATION_CASES = [
    Case(
        seq_length=64, micro=2, global_batch=2, shape=_BIG, compute=compute, recompute={"kind": kind},
        adapters=({"name": "a", "kind": "lora", "options": {"rank": 4, "layers": {"last": last}}},),
    )
    for compute, kind, last in (("fp32", "none", 4), ("fp32", "selective", 2), ("bf16", "none", 4), ("bf16", "none", 2))
]  # fmt: skip


def test_activations_under_adapters_equal_saved_tensors() -> None:
    (found,) = run_ranks(1, _kept_bytes, _ACTIVATION_CASES)

    for case, kept in zip(_ACTIVATION_CASES, found, strict=True):
        # Over bf16, norms on CPUs keep fp32 copies too, which they do not on GPUs.
        assert case.plan().memory[0].activations == pytest.approx(kept, rel=0.1), case
