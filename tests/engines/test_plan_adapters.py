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


def _activation_case(
    compute: str, kind: str, options: dict[str, Any], *, tp: int = 1, sequence: bool = False, recompute: str = "none"
) -> Case:
    return Case(
        tp=tp, sequence=sequence, seq_length=64, micro=2, global_batch=2, shape=_BIG, compute=compute,
        recompute={"kind": recompute}, adapters=({"name": "a", "kind": kind, "options": options},),
    )  # fmt: skip


_RANK_4: dict[str, Any] = {"rank": 4}
_KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", _RANK_4),
    ("lora", {**_RANK_4, "targets": ("q_proj", "v_proj")}),
    ("lora", {**_RANK_4, "dora": True}),
    ("ia3", {}),
    ("bottleneck", {"size": 16}),
    ("prefix", {"length": 4}),
)
_ACTIVATION_CASES = [
    *(_activation_case(compute, kind, options) for compute in ("fp32", "bf16") for kind, options in _KINDS),
    _activation_case("fp32", "lora", {**_RANK_4, "layers": {"last": 2}}, recompute="selective"),
    _activation_case("bf16", "lora", {**_RANK_4, "layers": {"last": 2}}),
]
_DIVIDED_CASES = [
    _activation_case("fp32", kind, options, tp=2, sequence=sequence)
    for kind, options in _KINDS
    for sequence in (False, True)
]


@pytest.mark.parametrize("cases", [_ACTIVATION_CASES, _DIVIDED_CASES], ids=["tp1", "tp2"])
def test_activations_under_adapters_equal_saved_tensors(cases: list[Case]) -> None:
    by_rank = run_ranks(cases[0].world_size, _kept_bytes, cases)

    for index, case in enumerate(cases):
        for found in by_rank:
            assert case.plan().memory[0].activations == pytest.approx(found[index], rel=0.1), case
