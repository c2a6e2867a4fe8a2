from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.parameters import model_numel, rank_parameters
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.presets import PRESETS
from tests.unit.plan.specs import run_spec


def _total(plan: RunPlan) -> int:
    """Sum over all stages and tensor ranks, replicated tensors and the tied copy once."""
    total = 0
    for pp_rank in range(plan.topology.pp_size):
        for tp_rank in range(plan.topology.tp_size):
            for parameter in rank_parameters(plan, pp_rank, tp_rank):
                if not parameter.tied_copy and (tp_rank == 0 or not parameter.replicated):
                    total += parameter.numel
    return total


@pytest.mark.parametrize("name", list(PRESETS))
def test_totals_equal_published_counts(name: str) -> None:
    assert model_numel(PRESETS[name].shape) == PRESETS[name].parameters


@given(
    tp=st.sampled_from([1, 2, 4]),
    stages=st.sampled_from([(1, 1), (2, 1), (4, 1), (2, 2), (2, 4), (4, 2)]),
    tied=st.booleans(),
    vocab=st.integers(1, 300),
    multiple=st.sampled_from([1, 8, 128]),
)
def test_ranks_together_hold_the_model_and_its_padding(
    tp: int, stages: tuple[int, int], tied: bool, vocab: int, multiple: int
) -> None:
    pp, vp = stages
    model = {"vocab_size": vocab, "tie_word_embeddings": tied, "num_kv_heads": 4, "vocab_pad_multiple": multiple}
    plan = make_plan(run_spec(model=model, tp=tp, pp=pp, parallel={"virtual_stages": vp}))

    padded = -(-vocab // (multiple * tp)) * multiple * tp
    tables = 1 if tied else 2
    assert _total(plan) == model_numel(plan.shape) + (padded - vocab) * plan.shape.hidden_size * tables
    for memory in plan.memory:
        held = rank_parameters(plan, memory.pp_rank, tp - 1)
        assert memory.parameters == sum(parameter.numel for parameter in held)
        assert len({parameter.name for parameter in held}) == len(held)


@pytest.mark.parametrize(("pp", "copies"), [(1, 0), (2, 1)])
def test_tied_embedding_has_a_copy_only_across_stages(pp: int, copies: int) -> None:
    plan = make_plan(run_spec(model={"tie_word_embeddings": True}, pp=pp))

    last = rank_parameters(plan, pp - 1, 0)
    assert sum(parameter.tied_copy for parameter in last) == copies
    assert ("output_layer.weight" in {parameter.name for parameter in last}) == bool(copies)


@pytest.mark.parametrize(
    ("pp_rank", "tp_rank", "text"), [(2, 0, "pp_rank=2"), (0, 2, "tp_rank=2"), (-1, 0, "pp_rank=-1")]
)
def test_coordinates_outside_the_plan_are_refused(pp_rank: int, tp_rank: int, text: str) -> None:
    with pytest.raises(IndexError, match=rf"{text} lies outside 0\.\.1"):
        rank_parameters(make_plan(run_spec(tp=2, pp=2)), pp_rank, tp_rank)
