from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from llama_scale.errors import LaunchError
from llama_scale.plan.run_plan import make_plan
from llama_scale.resources import data_dir
from llama_scale.simulate.alone import alone
from llama_scale.simulate.changes import Change, compare, show, table
from llama_scale.simulate.shrink import Inputs, TaskInput, shrink
from llama_scale.spec.load import load_spec
from llama_scale.spec.model import InlineModel
from llama_scale.spec.run import RunSpec
from tests.distributions import install
from tests.properties import examples
from tests.unit.simulate.strategies import checked, specs
from tests.unit.spec.documents import document

LARGE = {"kind": "preset", "name": "llama-3.1-8b"}
SCRATCH = {"steps": 10, "from": "scratch"}
CONFIGS = sorted(data_dir("configs").rglob("*.yaml"))


def inputs(spec: RunSpec) -> Inputs:
    """Return inputs as if the spec's files were here."""
    assert isinstance(spec.model, InlineModel)
    tokenizer = None if spec.tokenizer is None else spec.tokenizer.model_dump(mode="json")
    return Inputs(
        blend=[f"/sim/tokens-{number}" for number in range(len(getattr(spec.data, "blend", ())))],
        tokenizer=tokenizer,
        tokenizer_size=spec.model.vocab_size if tokenizer else 0,
        tasks=[TaskInput(options=task.options, least_seq=128, why="") for task in spec.tasks],
    )


def shrunk(spec: RunSpec) -> RunSpec:
    return shrink(spec, inputs(spec))[0]


def model_of(spec: RunSpec) -> InlineModel:
    assert isinstance(spec.model, InlineModel)
    return spec.model


def padded(spec: RunSpec) -> bool:
    model = model_of(spec)
    return model.vocab_size % (model.vocab_pad_multiple * spec.parallel.tensor) != 0


@examples(40)
@given(specs)
def test_any_valid_spec_shrinks_to_a_valid_one_with_its_degrees(spec: RunSpec) -> None:
    small = shrunk(spec)

    old, new = spec.parallel, small.parallel
    assert new.world_size == small.cluster.world_size <= 8
    for name in ("data", "tensor", "pipeline", "virtual_stages"):
        assert (getattr(new, name) > 1) == (getattr(old, name) > 1)
    assert new.sequence == old.sequence
    assert make_plan(small).topology.world_size == new.world_size
    _same_character(spec, small)
    single = alone(small)
    assert single is not None
    assert single.parallel.world_size == 1
    assert single.batch.global_ == small.batch.global_


def _same_character(spec: RunSpec, small: RunSpec) -> None:
    old, new = model_of(spec), model_of(small)
    assert (new.queries_per_kv > 1) == (old.queries_per_kv > 1)
    assert new.tie_word_embeddings == old.tie_word_embeddings
    assert new.rope_scaling == old.rope_scaling
    assert (new.hidden_size % new.num_heads == 0) == (old.hidden_size % old.num_heads == 0)
    if small.parallel.tensor * model_of(small).vocab_pad_multiple > 1:
        assert padded(spec) == padded(small)
    assert (spec.batch.accumulation or 0) > 1 or small.batch.accumulation == 1
    assert small.batch.micro == min(spec.batch.micro or 0, 2)
    assert small.engine.kind == spec.engine.kind
    assert small.precision == spec.precision
    assert small.recompute.kind == spec.recompute.kind
    if spec.parallel.stage_layers is not None and small.parallel.pipeline > 1:
        sizes = spec.parallel.stage_layers
        assert small.parallel.stage_layers is not None
        assert (len(set(small.parallel.stage_layers)) > 1) == (len(set(sizes)) > 1)
    for before, after in zip(spec.adapters, small.adapters, strict=True):
        assert (before.name, before.kind) == (after.name, after.kind)
        old_part, new_part = _touched(before.options, old.num_layers), _touched(after.options, new.num_layers)
        assert 0 < new_part <= new.num_layers
        if new.num_layers > 1:
            assert (new_part < new.num_layers) == (old_part < old.num_layers)


def _touched(options: dict[str, Any], layers: int) -> int:
    choice = options["layers"]
    return layers if choice == "all" else choice["last"] if isinstance(choice, dict) else len(choice)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_spec_shrinks(path: Path) -> None:
    spec = load_spec(path)
    small = shrunk(spec)
    assert small.parallel.world_size <= 8
    assert [task.kind for task in small.tasks] == [task.kind for task in spec.tasks]
    assert small.mixture == spec.mixture


def test_shrinking_a_simulation_again_changes_no_degree_or_width() -> None:
    small = shrunk(checked(document()))
    again = shrunk(small)
    assert again.parallel == small.parallel
    assert again.model == small.model


def test_every_change_is_told_and_nothing_else() -> None:
    spec = checked(document(restart={"max": 2}, optimizer={"lr": 0.5}))
    small, changes = shrink(spec, Inputs(blend=["/sim/a"], blend_why=["not here: random tokens"]))

    told = {change.field: change for change in changes}
    assert told["restart.max"] == Change(field="restart.max", before=2, after=0, why="the simulation resumes by itself")
    assert told["data.blend[0].path"].why == "not here: random tokens"
    assert "optimizer.lr" not in told
    before, after = (s.model_dump(mode="json", by_alias=True) for s in (spec, small))
    assert compare(before, after, {}) == tuple(
        Change(field=change.field, before=change.before, after=change.after) for change in changes
    )


def test_three_parts_of_three_heads_are_remade() -> None:
    spec = checked(
        document(
            model={"kind": "preset", "name": "smollm2-135m"},
            parallel={"tensor": 3},
            cluster={"devices_per_node": 3, "device": "cpu"},
        )
    )
    small = shrunk(spec)
    assert small.parallel.tensor == 2
    assert (model_of(small).num_heads, model_of(small).num_kv_heads) == (6, 2)


def test_network_of_the_cluster_is_left_out_and_own_variables_stay() -> None:
    launcher = {"kind": "local", "env": {"NCCL_IB_HCA": "mlx5", "GLOO_SOCKET_IFNAME": "ib0", "OURS": "x"}}
    assert shrunk(checked(document(launcher=launcher))).launcher.env == {"OURS": "x"}


def test_nvme_becomes_host_memory() -> None:
    offload = {"device": "nvme", "nvme_path": "/scratch"}
    spec = checked(
        document(
            engine={"kind": "deepspeed", "zero": 3, "offload_optimizer": offload},
            batch={"global": 16, "micro": 2},
            parallel={"data": 8},
            cluster={"devices_per_node": 8, "device": "cuda"},
            precision={"compute": "bf16"},
        )
    )
    engine = shrunk(spec).engine
    assert engine.kind == "deepspeed"
    assert engine.offload_optimizer is not None
    assert engine.offload_optimizer.device == "cpu"
    assert engine.zero == 3


PICKY = '''
from pydantic import Field
from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter


class Options(AdapterOptions):
    """Options."""

    columns: int = Field(8, description="Leading columns that are used.")


def parameters(options, shape, layer):
    if options.columns > shape.hidden_size:
        raise ValueError(f"columns={options.columns} of {shape.hidden_size}; use fewer")
    return (ExtraParameter(name="w", shape=(options.columns,)),)


DESCRIPTOR = AdapterDescriptor(
    name="picky", options=Options, parameters=parameters, implementation="none:None", summary="for tests",
    not_mergeable=lambda options: "it is for tests",
)
'''


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    install(
        site,
        "picky",
        points={"llama_scale.adapters": {"picky": "picky_for_simulation:DESCRIPTOR"}},
        modules={"picky_for_simulation": PICKY},
    )
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("picky")
def test_model_grows_until_options_of_plugins_fit() -> None:
    adapters = [{"name": "a", "kind": "picky", "options": {"columns": 500}}]
    spec = checked(document(adapters=adapters, model=LARGE, train=SCRATCH))
    small = shrunk(spec)
    assert 500 <= model_of(small).hidden_size < 1100
    assert small.adapters[0].options["columns"] == 500


@pytest.mark.usefixtures("picky")
def test_options_that_fit_no_small_model_are_named() -> None:
    adapters = [{"name": "a", "kind": "picky", "options": {"columns": 4000}}]
    spec = checked(document(adapters=adapters, model=LARGE, train=SCRATCH))
    with pytest.raises(LaunchError, match=r"(?s)cannot be simulated.*adapters\[0\].options: columns=4000 of"):
        shrunk(spec)


def test_table_is_aligned_and_cut() -> None:
    changes = [
        Change(field="a.b", before=1, after=2),
        Change(field="path", before="/" + "x" * 100, after={"kind": "local", "env": {}}, why="because"),
    ]
    lines = table(changes).splitlines()
    assert lines[0].split() == ["field", "spec", "simulated"]
    assert lines[1].split() == ["a.b", "1", "2"]
    assert lines[2].endswith("local      because")
    assert len(show("y" * 100)) == 18


def test_weights_are_drawn_from_the_seed_and_that_is_said() -> None:
    model = {"kind": "preset", "name": "llama-3.1-8b", "init_from": "/models/llama", "base_name": "org/llama"}
    spec = checked(document(model=model, adapters=[{"name": "a", "kind": "lora"}]))
    small, changes = shrink(spec, Inputs(blend=["/x"], blend_why=["made"]))
    assert (small.train.from_, small.model.init_from, small.model.base_name) == ("scratch", None, None)
    why = {change.field: change.why for change in changes}
    assert why["train.from"] == why["model.init_from"] == "drawn from the seed"
