"""The plan against the engines: groups, parameter tensors and Megatron-Core's model states of real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llama_scale.plan.buckets import stage_shards
from llama_scale.plan.parameters import rank_parameters
from llama_scale.plan.topology import Topology
from tests.engines.harness import join, run_ranks
from tests.engines.specs import Case
from tests.engines.training import in_turn, start_in_turn

_TIED = {"tie_word_embeddings": True}
_MHA = {"num_kv_heads": 4, "head_dim": 8}


def _engine_groups(topologies: list[Topology]) -> list[dict[str, list[int]]]:
    from megatron.core import parallel_state

    from llama_scale.train.distributed import initialize

    found = []
    for topology in in_turn(topologies):
        coordinates = initialize(topology, device="cpu", timeout_s=60)
        assert coordinates.tp_rank == parallel_state.get_tensor_model_parallel_rank()
        assert coordinates.dp_rank == parallel_state.get_data_parallel_rank()
        assert coordinates.pp_rank == parallel_state.get_pipeline_model_parallel_rank()
        groups = {
            "tp": parallel_state.get_tensor_model_parallel_group(),
            "dp": parallel_state.get_data_parallel_group(),
            "pp": parallel_state.get_pipeline_model_parallel_group(),
        }
        found.append({axis: torch.distributed.get_process_group_ranks(group) for axis, group in groups.items()})
    return found


def test_topology_groups_equal_parallel_state() -> None:
    sizes = [(2, 2, 2), (1, 4, 2), (4, 2, 1)]
    topologies = [Topology(dp_size=dp, tp_size=tp, pp_size=pp) for dp, tp, pp in sizes]

    by_rank = run_ranks(8, _engine_groups, topologies)

    for index, topology in enumerate(topologies):
        for axis in ("tp", "dp", "pp"):
            real = {tuple(groups[index][axis]) for groups in by_rank}
            assert set(topology.groups(axis)) == real, (topology, axis)


def _tensor_sizes(cases: list[Case]) -> list[dict[str, int]]:
    from llama_scale.train.model import build_chunks
    from llama_scale.train.names import logical_parameters

    found = []
    for case in in_turn(cases):
        plan = case.plan()
        coordinates = join(plan)
        chunks = build_chunks(case.spec(), plan, coordinates, initialize=False)
        sizes = {
            "output_layer.weight" if local.tied_copy else local.name: local.tensor.numel()
            for local in logical_parameters(chunks, plan, coordinates)
        }
        # Every tensor of the modules is in the table, and none is counted twice.
        assert sum(sizes.values()) == sum(p.numel() for chunk in chunks for p in chunk.parameters())
        found.append(sizes)
    return found


_GRID = {
    2: [
        Case(dp=2),
        Case(dp=2, shape=_TIED),
        Case(tp=2),
        Case(tp=2, shape=_TIED, vocab_pad_multiple=128),
        Case(tp=2, shape={"vocab_size": 3, **_MHA}, vocab_pad_multiple=1),
        Case(pp=2),
        Case(pp=2, shape=_TIED),
        Case(pp=2, stage_layers=(1, 3), shape=_TIED),
        Case(pp=2, vp=2, overlap_p2p=True),
        Case(pp=2, vp=2, overlap_p2p=True, shape=_TIED),
    ],
    4: [
        Case(tp=4, shape=_MHA),
        Case(tp=4, shape={**_MHA, **_TIED, "vocab_size": 1001}, vocab_pad_multiple=1),
        Case(tp=2, pp=2, shape=_TIED),
        Case(tp=2, pp=2, sequence=True, stage_layers=(3, 1)),
        Case(tp=2, pp=2, vp=2, overlap_p2p=True, shape={**_TIED, "vocab_size": 130}, vocab_pad_multiple=64),
        Case(pp=4, shape={"num_layers": 8}, vp=2),
        Case(pp=4, shape={"num_layers": 9, **_TIED}, vp=2, stage_layers=(1, 1, 1, 1, 1, 1, 1, 2)),
        Case(pp=4, stage_layers=(1, 1, 1, 1), shape={**_TIED, "num_kv_heads": 1}),
    ],
}


@pytest.mark.parametrize("world_size", list(_GRID))
def test_parameters_per_rank_equal_real_tensors(world_size: int) -> None:
    cases = _GRID[world_size]

    by_rank = run_ranks(world_size, _tensor_sizes, cases)

    for index, case in enumerate(cases):
        plan = case.plan()
        for rank, found in enumerate(by_rank):
            place = plan.topology.coordinates(rank)
            planned = {p.name: p.numel for p in rank_parameters(plan, place.pp_rank, place.tp_rank)}
            assert planned == found[index], (case, rank)
            assert plan.memory[place.pp_rank].parameters == sum(found[index].values()), (case, rank)


def _state_bytes(cases: list[Case]) -> list[dict[str, int]]:
    """Count the bytes of this rank's model states by part; buffers are what the parts do not explain."""
    from llama_scale.train.optimizer import held_parameters

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    found = []
    for case, engine in start_in_turn(cases):
        parameters = [p for chunk in engine.chunks for p in chunk.parameters()]
        held = list(held_parameters(engine._optimizer))
        buffers = [buffer for chunk in engine._wrapped for buffer in chunk.buffers]
        weights, gradients = size(parameters), size(p.main_grad for p in parameters)
        padding = sum(size([b.grad_data]) for b in buffers) - gradients
        if case.distributed_optimizer:
            padding += sum(size([b.param_data]) for b in buffers) - weights
        found.append(
            {
                "weights": weights,
                "gradients": gradients,
                "masters": size(h.main for h in held if h.is_copy),
                "moments": sum(size((h.state["exp_avg"], h.state["exp_avg_sq"])) for h in held),
                "buffers": padding,
            }
        )
    return found


_SHARDED = {"distributed_optimizer": True}
_STATE_GRID = {
    2: [
        Case(dp=2),
        Case(dp=2, compute="bf16"),
        Case(dp=2, **_SHARDED),
        Case(dp=2, **_SHARDED, compute="bf16"),
        Case(dp=2, **_SHARDED, overlap_grad_reduce=True),
        Case(tp=2, **_SHARDED, compute="bf16"),
        Case(pp=2, vp=2, overlap_p2p=True, **_SHARDED, shape=_TIED),
    ],
    4: [
        Case(dp=4, **_SHARDED, shape={"vocab_size": 1001}, vocab_pad_multiple=1),
        Case(dp=2, tp=2, **_SHARDED, sequence=True, compute="bf16"),
        Case(dp=2, pp=2, **_SHARDED, shape=_TIED),
        Case(dp=2, pp=2, vp=2, overlap_p2p=True, **_SHARDED, shape=_TIED, compute="bf16"),
        Case(dp=2, pp=2, stage_layers=(1, 3)),
    ],
}


@pytest.mark.parametrize("world_size", list(_STATE_GRID))
def test_model_state_bytes_equal_real_tensors(world_size: int) -> None:
    cases = _STATE_GRID[world_size]

    by_rank = run_ranks(world_size, _state_bytes, cases)

    for index, case in enumerate(cases):
        plan = case.plan()
        for rank, found in enumerate(by_rank):
            place = plan.topology.coordinates(rank)
            states = plan.memory[place.pp_rank].states
            planned = {"weights": states.weights, "gradients": states.gradients, "buffers": states.buffers}
            assert planned == {part: found[index][part] for part in planned}, (case, rank)
            if case.distributed_optimizer:
                shards = stage_shards(
                    plan.shape,
                    plan.stages,
                    pp_rank=place.pp_rank,
                    tp_size=case.tp,
                    dp_size=case.dp,
                    vocab_pad_multiple=plan.vocab_pad_multiple,
                    overlap_grad_reduce=case.overlap_grad_reduce,
                )
                mine, most = shards.numels[place.dp_rank], max(shards.numels)
            else:
                mine = most = plan.memory[place.pp_rank].parameters
            masters = 4 * mine if case.compute == "bf16" else 0
            assert (found[index]["masters"], found[index]["moments"]) == (masters, 8 * mine), (case, rank)
            # The plan shows the replica that holds most.
            assert (states.masters, states.moments) == (4 * most if masters else 0, 8 * most)
