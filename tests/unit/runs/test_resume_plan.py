from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_scale.checkpoint.manifest import Manifest, TensorEntry, TopologyRecord
from llama_scale.errors import SpecError
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.runs.resume_plan import ResumePlan, decide_resume
from llama_scale.runs.resume_spec import load_resumed
from llama_scale.spec.load import dump_spec, load_spec
from tests.live_runs import write_spec


def _manifest(plan: RunPlan, **changes: Any) -> Manifest:
    entry = TensorEntry(shape=(2,), dtype="float32", digest="0" * 16)
    values: dict[str, Any] = {
        "step": 2,
        "samples": 8,
        "spec_digest": plan.spec_digest,
        "engine": plan.engine,
        "topology": TopologyRecord(
            dp_size=plan.topology.dp_size,
            tp_size=plan.topology.tp_size,
            pp_size=plan.topology.pp_size,
            stages=tuple(tuple(chunk.layers for chunk in stage) for stage in plan.stages),
        ),
        "shape": plan.shape,
        "vocab_pad_multiple": plan.vocab_pad_multiple,
        "tensors": {"model": {"a": entry}, "exp_avg": {"a": entry}},
        "shards": (),
        "parameter_digest": "0" * 64,
        "created_utc": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**(values | changes))


@pytest.fixture
def resolved(tmp_path: Path) -> Path:
    """The resolved spec of a run folder."""
    path = tmp_path / "run" / "spec.yaml"
    path.parent.mkdir()
    path.write_text(dump_spec(load_spec(write_spec(tmp_path / "spec"))), encoding="utf-8")
    return path


def _decide(path: Path, *overrides: str, manifest: dict[str, Any] | None = None) -> ResumePlan:
    old = load_spec(path)
    new, _ = load_resumed(path, overrides=overrides)
    written = _manifest(make_plan(old), **(manifest or {}))
    return decide_resume(written, checkpoint="step-00000002", old=old, new=new, plan=make_plan(new))


def test_same_spec_reuses(resolved: Path) -> None:
    found = _decide(resolved)
    assert (found.kind, found.checkpoint, found.step, found.changes) == ("reuse", "step-00000002", 2, ())


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["parallel.tensor=1"], "tensor 2 -> 1"),
        (["parallel.pipeline=1"], "pipeline 2 -> 1"),
        (["parallel.data=2"], "data 1 -> 2"),
        (
            ["parallel.virtual_stages=2", "engine.overlap_p2p=true"],
            "layers of the stages (((0, 1),), ((2, 3),)) -> (((0,), (2,)), ((1,), (3,)))",
        ),
        (["parallel.stage_layers=[1, 3]"], "layers of the stages (((0, 1),), ((2, 3),)) -> (((0,),), ((1, 2, 3),))"),
        (["model.vocab_pad_multiple=16"], "vocab_pad_multiple 8 -> 16"),
        (["precision.compute=bf16"], "precision fp32 -> bf16"),
        (["engine={kind: ddp}", "parallel.tensor=1", "parallel.pipeline=1"], "engine megatron -> ddp"),
    ],
)
def test_other_layouts_reshard(resolved: Path, overrides: list[str], reason: str) -> None:
    found = _decide(resolved, *overrides)
    assert found.kind == "reshard"
    assert reason in found.reasons


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.num_layers=8", "model.num_layers: the checkpoint has 4, the spec 8: it is another model"),
        ("model.rope_theta=500000.0", "model.rope_theta: the checkpoint has 10000.0, the spec 500000.0"),
        ("seed=8", "seed: 7 -> 8: the order of samples and all random numbers follow from it"),
        ("data.seq_length=8", "data.seq_length: 16 -> 8: the position in the data"),
        ("data.blend[0].path=/elsewhere", "data.blend: "),
        ("train.steps=2", "all steps are done: the checkpoint is of step 2 and train.steps=2; go on with --set"),
    ],
)
def test_another_run_is_refused_with_the_reason(resolved: Path, override: str, reason: str) -> None:
    found = _decide(resolved, override)
    assert found.kind == "refuse"
    assert any(text.startswith(reason) for text in found.reasons), found.reasons


def test_checkpoint_without_optimizer_state_is_refused(resolved: Path) -> None:
    entry = TensorEntry(shape=(2,), dtype="float32", digest="0" * 16)
    found = _decide(resolved, manifest={"tensors": {"model": {"a": entry}}})
    assert found.kind == "refuse"
    assert "holds no optimizer state (checkpoint.save_optimizer: false" in found.reasons[0]


def test_all_refusals_are_named_together(resolved: Path) -> None:
    assert len(_decide(resolved, "seed=8", "model.num_layers=8", "data.seq_length=8").reasons) == 3


def test_changes_of_training_are_told(resolved: Path) -> None:
    found = _decide(resolved, "optimizer.lr=0.001", "train.steps=9")
    assert found.kind == "reuse"
    assert found.changes == ("train.steps: 4 -> 9", "optimizer.lr: 0.0003 -> 0.001")


def test_without_checkpoint_the_run_starts(resolved: Path) -> None:
    old = load_spec(resolved)
    found = decide_resume(None, checkpoint=None, old=old, new=old, plan=make_plan(old))
    assert (found.kind, found.step, found.reasons) == ("start", 0, ("there is no complete checkpoint",))
    assert found.to_dict() == {
        "kind": "start",
        "checkpoint": None,
        "step": 0,
        "steps": 4,
        "reasons": ["there is no complete checkpoint"],
        "changes": [],
    }


def test_what_the_user_did_not_name_follows(resolved: Path) -> None:
    spec, notes = load_resumed(resolved, overrides=["parallel.data=2", "parallel.tensor=1"])

    assert (spec.batch.global_, spec.batch.micro, spec.batch.accumulation) == (4, 1, 2)
    assert spec.cluster.devices_per_node == 4
    assert notes == ("batch.accumulation: 4 -> 2",)


def test_batch_changes_keep_the_global_batch(resolved: Path) -> None:
    spec, notes = load_resumed(resolved, overrides=["batch.accumulation=2"])
    assert (spec.batch.global_, spec.batch.micro) == (4, 2)
    assert notes == ("batch.micro: 1 -> 2",)
    spec, _ = load_resumed(resolved, overrides=["batch.micro=4"])
    assert (spec.batch.global_, spec.batch.accumulation) == (4, 1)


def test_what_the_user_names_is_not_touched(resolved: Path) -> None:
    with pytest.raises(SpecError, match=r"devices_per_node"):
        load_resumed(resolved, overrides=["parallel.tensor=1", "cluster.devices_per_node=3"])
    with pytest.raises(SpecError, match=r"global=4"):
        load_resumed(resolved, overrides=["parallel.data=3"])
    with pytest.raises(SpecError, match=r"parallel.tensor"):
        load_resumed(resolved, overrides=["parallel.tensor=many"])


ALONE = ("parallel.pipeline=1", "parallel.tensor=1", "parallel.data=4")


def test_another_kind_drops_the_settings_that_it_does_not_have(resolved: Path) -> None:
    spec, notes = load_resumed(resolved, overrides=["engine.kind=ddp", "engine.bucket_mb=3", *ALONE])
    assert spec.engine.model_dump() == {"kind": "ddp", "bucket_mb": 3}
    assert notes[0].startswith("left out, as ddp has no such settings: engine.distributed_optimizer, engine.overlap_")

    spec, notes = load_resumed(resolved, overrides=["schedule.kind=cosine", "launcher.kind=local"])
    assert (spec.schedule.kind, spec.schedule.warmup_steps, notes) == ("cosine", 0, ())


def test_settings_that_both_kinds_have_are_kept(resolved: Path) -> None:
    resolved.write_text(dump_spec(load_resumed(resolved, overrides=["schedule.warmup_steps=2"])[0]), encoding="utf-8")
    spec, notes = load_resumed(resolved, overrides=["schedule.kind=wsd", "schedule.decay_steps=1"])
    assert (spec.schedule.kind, spec.schedule.warmup_steps, notes) == ("wsd", 2, ())


def test_a_kind_that_there_is_not_is_refused(resolved: Path) -> None:
    with pytest.raises(SpecError, match="ddpp"):
        load_resumed(resolved, overrides=["engine.kind=ddpp"])


@pytest.mark.parametrize(
    ("override", "length"),
    [("train.epochs=2", (None, 2.0)), ("train.tokens=640", (10, None)), ("train.steps=9", (9, None))],
)
def test_length_may_be_given_anew_in_another_unit(resolved: Path, override: str, length: tuple[Any, Any]) -> None:
    spec, _ = load_resumed(resolved, overrides=[override])

    assert (spec.train.steps, spec.train.epochs) == length
