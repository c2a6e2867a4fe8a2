"""Faults of form hide no fault of a rule whose inputs are valid, and cause no complaint about what they hide."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_scale.errors import Problem
from llama_scale.spec.load import check_text
from llama_scale.spec.view import Absent, View
from tests.unit.spec.documents import INLINE, document

WRONG_BATCH = {"global": 7, "micro": 2, "accumulation": 2}


def found(spec: dict[str, Any]) -> list[Problem]:
    return list(check_text(json.dumps(spec), name="f.json", folder="/", env={}).problems)


def codes(spec: dict[str, Any]) -> set[tuple[str, str]]:
    return {(problem.dotted, problem.code) for problem in found(spec)}


def test_a_misspelt_key_of_a_section_does_not_hide_rules_about_its_other_fields() -> None:
    spec = document(batch=WRONG_BATCH, parallel={"tensr": 2, "sequence": False}, cluster={"device": "cpu"})
    assert codes(spec) == {("parallel.tensr", "unknown-key"), ("batch.global", "batch-contradiction")}


def test_a_misspelt_key_makes_no_complaint_about_the_default_it_was_to_replace() -> None:
    spec = document(
        parallel={"tensr": 2}, cluster={"device": "cpu", "devices_per_node": 2}, batch={"global": 2, "micro": 1}
    )
    assert codes(spec) == {("parallel.tensr", "unknown-key")}
    spec["parallel"] = {"tp": 2}
    assert codes(spec) == {("parallel.tp", "unknown-key")}
    del spec["parallel"]
    spec["paralel"] = {"tensor": 2}
    assert codes(spec) == {("paralel", "unknown-key")}


def test_a_wrong_value_hides_only_the_rules_that_read_it() -> None:
    spec = document(
        model={**INLINE, "num_heads": 9, "num_kv_heads": 2, "rms_norm_eps": "small"},
        train={"steps": "many"},
        schedule={"kind": "cosine", "warmup_steps": 5},
        restart={"max": True, "min_nodes": 5},
        cluster={"device": "cpu", "devices_per_node": "four"},
    )
    assert codes(spec) == {
        ("model.rms_norm_eps", "type"),
        ("model.num_kv_heads", "heads-kv-heads"),
        ("parallel.tensor", "tensor-num-heads"),
        ("train.steps", "type"),
        ("restart.max", "type"),
        ("restart.min_nodes", "min-nodes"),
        ("cluster.devices_per_node", "type"),
    }


def test_rules_see_presets_and_lists_around_a_fault() -> None:
    spec = document(
        model={"kind": "preset", "name": "smollm2-135m", "num_layers": "all", "colour": 1},
        parallel={"tensor": 2},
        cluster={"device": "cpu", "devices_per_node": 2},
        tasks=[
            {"name": "t", "kind": "k"},
            {"name": "t", "kind": "k", "weight": -1},
            {"name": "t", "kind": "k", "w": 1},
        ],
    )
    assert {
        ("model.num_layers", "type"),
        ("model.colour", "unknown-key"),
        ("parallel.tensor", "tensor-num-heads"),
        ("tasks[1].weight", "range"),
        ("tasks[1].name", "duplicate-name"),
        ("tasks[2].name", "duplicate-name"),
    } <= codes(spec)


def test_the_world_size_is_told_with_degrees_though_the_models_width_is_unknown() -> None:
    spec = document(
        model={**INLINE, "num_heads": None},
        parallel={"data": 3},
        cluster={"device": "cpu"},
        batch={"global": 3, "micro": 1},
    )
    assert codes(spec) == {("model.num_heads", "type"), ("parallel", "world-size")}
    world = next(problem for problem in found(spec) if problem.code == "world-size")
    assert "(data=1, tensor=1, pipeline=1)" in world.hint


def test_a_models_folder_is_read_though_another_field_is_wrong(tmp_path: Any) -> None:
    spec = document(model={"kind": "hf", "path": str(tmp_path / "gone"), "init_std": -1})
    assert codes(spec) == {("model.init_std", "range"), ("model.path", "hf-config")}
    (tmp_path / "gone").mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config |= {"num_hidden_layers": 2, "vocab_size": 96, "max_position_embeddings": 8}
    (tmp_path / "gone/config.json").write_text(json.dumps(config))
    assert codes(spec) == {("model.init_std", "range"), ("data.seq_length", "seq-length-positions")}


def test_items_with_faults_are_not_counted_as_missing() -> None:
    spec = document(data={"kind": "indexed", "seq_length": 8, "blend": [{"path": "x", "wieght": 2}]})
    assert codes(spec) == {("data.blend[0].wieght", "unknown-key")}
    spec["data"]["blend"] = []
    assert codes(spec) == {("data.blend", "length")}


def test_a_view_tells_an_absent_field_from_one_that_its_form_lacks() -> None:
    view = View(absent=["micro", "global_"], global_=8)
    assert view.global_ == 8
    with pytest.raises(Absent, match="micro"):
        _ = view.micro
    with pytest.raises(AttributeError, match="colour"):
        _ = view.colour
    with pytest.raises(Absent, match="micro"):
        _ = view.model_copy(update={"global_": 4}).micro
