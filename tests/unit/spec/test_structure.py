"""The form of a spec: pydantic, the emitted JSON Schema and the quick check agree on every document."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.spec.json_schema import spec_schema
from llama_scale.spec.load import check_text
from llama_scale.spec.quick import SCHEMA_FILE, check_document
from llama_scale.spec.structure import check_structure
from tests.properties import examples
from tests.unit.spec.documents import INLINE, document

RICH = document(
    seed=3,
    tokenizer={"kind": "hf", "path": "t"},
    optimizer={"lr": 1, "betas": [0, 0.5]},
    schedule={"kind": "wsd", "decay_steps": 2, "decay": "sqrt", "warmup_steps": 0},
    precision={"compute": "fp32", "gradients": "fp32"},
    recompute={"kind": "full", "method": "block", "layers": 1},
    checkpoint={"every_steps": 3, "keep_best": False},
    validation={"every_steps": 2},
    restart={"max": 1, "min_nodes": None},
    launcher={"kind": "local", "env": {"A": "b"}, "grace_s": 1.5},
    tracking={"wandb": {"project": "p"}, "mlflow": {"experiment": "e", "uri": None}},
)
ADAPTERS = document(
    adapters=[{"name": "a", "kind": "lora", "task": "t", "options": {"rank": [1]}}],
    tasks=[{"name": "t", "kind": "k", "weight": 0.5}],
    mixture={"weights": "gate", "objective": "em", "gate": "router", "gate_options": {}},
)
BASES = (
    document(),
    RICH,
    ADAPTERS,
    document(model=INLINE),
    document(model={"kind": "hf", "path": "folder"}),
    document(engine={"kind": "ddp"}, recompute={"kind": "selective"}, schedule={"kind": "constant"}),
    document(engine={"kind": "deepspeed", "zero": 3, "offload_parameters": {"device": "nvme", "nvme_path": "x"}}),
)
VALUES = (
    None, True, False, 0, 1, 2, -1, 1.0, 1.5, 1e9, 2**63, "", "x", "1", "a\n", "fp16", "gate", "inline", "smollm2-135m",
    [], [1], [0.9, 0.95], [0.9, 1], [1, 2, 3], {}, {"kind": "full"}, {"kind": 3}, {"unknown": 1}, {"A": 1},
)  # fmt: skip
VALIDATOR = jsonschema.Draft202012Validator(spec_schema())


def paths(node: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def parent_of(node: Any, path: tuple[str | int, ...]) -> Any:
    for part in path[:-1]:
        node = node[part]
    return node


def mutants(base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield copy.deepcopy(base)
    for index, path in enumerate(list(paths(base))):
        for value in VALUES[index % 5 :: 5]:  # each path meets a fifth of the values, each value many paths
            mutant = copy.deepcopy(base)
            parent_of(mutant, path)[path[-1]] = value
            yield mutant
        mutant = copy.deepcopy(base)
        parent = parent_of(mutant, path)
        del parent[path[-1]]
        yield mutant
        if isinstance(parent, dict):
            renamed = copy.deepcopy(base)
            parent_of(renamed, path)[f"{path[-1]}x"] = 1
            yield renamed


def verdict(data: dict[str, Any]) -> bool:
    spec, problems = check_structure(data)
    assert (spec is None) == bool(problems)
    for problem in problems:
        text = f"{problem.message} {problem.hint}".lower()
        assert "pydantic" not in text and "http" not in text and "input should" not in text, text
    return spec is not None


@pytest.mark.parametrize("base", BASES, ids=range(len(BASES)))
def test_schema_and_structure_give_the_same_verdict(base: dict[str, Any]) -> None:
    assert verdict(base)
    accepted = 0
    for mutant in mutants(base):
        good = verdict(mutant)
        accepted += good
        assert good == VALIDATOR.is_valid(mutant), json.dumps(mutant)
        if check_document(mutant) is not None:
            assert good, json.dumps(mutant)
    assert accepted > 20


@examples(60)
@given(data=st.data())
def test_schema_and_structure_agree_on_generated_sections(data: st.DataObject) -> None:
    scalars = st.none() | st.booleans() | st.integers(-3, 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        scalars | st.text(max_size=3) | st.sampled_from(["full", "wsd", "linear", "bf16", "gate", "nvme"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "name", "lr"]), inner),
        max_leaves=6,
    )
    base = copy.deepcopy(RICH)
    path = data.draw(st.sampled_from(list(paths(base))))
    parent_of(base, path)[path[-1]] = data.draw(values)
    assert verdict(base) == VALIDATOR.is_valid(base)


@pytest.mark.parametrize("base", BASES, ids=range(len(BASES)))
def test_quick_check_is_good_exactly_where_the_full_check_is(base: dict[str, Any]) -> None:
    for mutant in [base, *list(mutants(base))[::7]]:
        quick = check_document(mutant)
        full = check_text(json.dumps(mutant), name="x", folder="/", env={}).spec
        if quick is not None:
            assert full is not None, json.dumps(mutant)
            assert (quick.batch.global_, quick.batch.accumulation) == (full.batch.global_, full.batch.accumulation)
            assert quick.train.steps == full.train.steps
            assert quick.model.num_layers == getattr(full.model, "num_layers", None)


def test_quick_check_takes_presets_with_rope_scaling() -> None:
    view = check_document(document(model={"kind": "preset", "name": "llama-3.2-1b"}))
    assert view is not None
    assert view.model.rope_scaling.factor == 32


def test_shipped_schema_is_the_models_schema() -> None:
    shipped = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert shipped == spec_schema(), f"run: llama-scale schema --core > {SCHEMA_FILE}"


def test_schema_describes_every_field_and_is_a_schema() -> None:
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, definition in [*schema["$defs"].items(), ("RunSpec", schema)]:
        assert definition["description"], name
        for field, form in definition["properties"].items():
            assert field == "kind" or form.get("description"), f"{name}.{field}"
