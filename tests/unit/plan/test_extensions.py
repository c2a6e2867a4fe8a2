"""What plugins add to a plan: rows of the parameter table, and memory with a frozen base."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.load import check_text
from tests.unit.spec.documents import INLINE, document

LORA = {
    "name": "news.v1",
    "kind": "lora",
    "options": {"rank": 4, "targets": ["q_proj", "o_proj"], "layers": {"last": 1}},
}


def _plan(**sections: Any) -> RunPlan:
    data = document(model=INLINE, train={"steps": 10, "from": "scratch"}, **sections)
    loaded = check_text(json.dumps(data), name="run.yaml", folder="/", env={})
    assert loaded.spec is not None, loaded.problems
    return make_plan(loaded.spec)


def test_rows_have_full_names_owners_and_places() -> None:
    plan = _plan(adapters=[LORA])
    prefix = "decoder.layers.3.adapters.news%2Ev1."

    assert [p.name.removeprefix(prefix) for p in plan.extra] == [
        f"{target}.{matrix}" for target in ("q_proj", "o_proj") for matrix in ("lora_A", "lora_B")
    ]
    assert {(p.owner, p.place, p.layer, p.trainable) for p in plan.extra} == {("adapter:news.v1", "layer", 3, True)}
    assert [(p.shape, p.tp_dim) for p in plan.extra] == [((4, 64), None), ((64, 4), 0), ((4, 64), 1), ((64, 4), None)]
    assert list(plan.all_parameters())[-4:] == list(plan.extra)
    assert not plan.base_trainable
    assert RunPlan.from_json(plan.to_json()) == plan


def test_heads_and_mixture_are_on_the_last_stage() -> None:
    tasks = {
        "data": {"kind": "tasks", "seq_length": 128},
        "tokenizer": {"kind": "sentencepiece", "path": "t.model"},
        "tasks": [{"name": "qa", "kind": "qa_extractive", "options": {"data": {"kind": "split_field", "path": "qa"}}}],
    }
    heads = _plan(**tasks)
    assert {(p.name, p.owner, p.place) for p in heads.extra} == {
        (f"heads.qa.{name}", "task:qa", "head") for name in ("weight", "bias")
    }
    assert heads.base_trainable
    two = [{**LORA, "name": name} for name in "ab"]
    assert _plan(adapters=two, mixture={"objective": "joint"}).extra[0].shape == (2,)
    gate = _plan(adapters=two, mixture={"objective": "joint", "weights": "gate"})
    assert [p.name for p in gate.extra if p.owner == "mixture"] == ["mixture.gate.weight", "mixture.gate.bias"]


@pytest.mark.parametrize(
    ("engine", "base_bytes"),
    [({"kind": "megatron"}, 2), ({"kind": "deepspeed", "zero": 1}, 2), ({"kind": "deepspeed", "zero": 3}, 1)],
    ids=["megatron", "zero1", "zero3"],
)
def test_a_frozen_base_has_weights_only(engine: dict[str, Any], base_bytes: int) -> None:
    layout = {"parallel": {"data": 2, "tensor": 2}, "cluster": {"devices_per_node": 4, "device": "cpu"}}
    [bare] = _plan(engine=engine, **layout).memory
    [adapted] = _plan(engine=engine, adapters=[LORA], **layout).memory
    added = sum((4 * 64, 32 * 4, 4 * 32, 64 * 4))  # of one of the two tensor parallel ranks

    assert adapted.parameters == bare.parameters + added
    share = added // 2 if engine.get("zero") == 3 else added
    assert adapted.states.weights == base_bytes * bare.parameters + 4 * share
    assert adapted.states.gradients == 4 * share
    assert adapted.states.moments == 8 * added // 2
    states = adapted.states
    held = states.weights + states.gradients + states.masters + states.moments + states.buffers
    assert adapted.total == held + adapted.activations + adapted.logits
    assert adapted.total < bare.total
