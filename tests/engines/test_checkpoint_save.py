"""Saving and resuming as all ranks do it together, over gloo: layouts, faults, background saves."""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_scale.checkpoint.manifest import load_manifest, newest_complete, verify_files
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.errors import CheckpointError
from llama_scale.layout.parameters import iter_parameters
from llama_scale.spec.checkpoint import Checkpoint
from llama_scale.spec.run import RunSpec
from llama_scale.train.checkpointing import Checkpointer, Position
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.state_engine import StateEngine, logical_value

LAYOUTS = {
    "1": Case(),
    "tp2": Case(tp=2),
    "pp2": Case(pp=2),
    "dp2-dist": Case(dp=2, distributed_optimizer=True),
    "tp2-dp2": Case(tp=2, dp=2),
    "tp2-dp2-dist": Case(tp=2, dp=2, distributed_optimizer=True),
    "pp2-vp2-dp2": Case(pp=2, vp=2, dp=2, distributed_optimizer=True, overlap_p2p=True),
    "pp3-uneven": Case(pp=3, stage_layers=(1, 2, 1)),
    "dp4-dist": Case(dp=4, distributed_optimizer=True),
    "tp2-pp2": Case(tp=2, pp=2),
    "tied": Case(shape={"tie_word_embeddings": True}),
    "tied-tp2": Case(tp=2, shape={"tie_word_embeddings": True}),
}


def start() -> int:
    world = int(os.environ["WORLD_SIZE"])
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return int(os.environ["RANK"])


def spec_of(case: Case, **checkpoint: Any) -> RunSpec:
    return case.spec().model_copy(update={"checkpoint": Checkpoint(**checkpoint)})


def make(case: Case, root: Path, **checkpoint: Any) -> tuple[Checkpointer, StateEngine]:
    engine = StateEngine(case, start())
    return Checkpointer(root, spec=spec_of(case, **checkpoint), plan=case.plan()), engine


def at(step: int, **facts: Any) -> Position:
    return Position(step=step, samples=8 * step, **facts)


def save_and_load(jobs: list[tuple[Case, Path, str]]) -> None:
    """Run jobs of one world size: save step 3 on a layout, or resume step 3 on it and compare."""
    for case, root, action in jobs:
        checkpointer, engine = make(case, root, asynchronous=action == "save-async")
        if action.startswith("save"):
            engine.advance(3)
            checkpointer.save(engine, at(3, metrics={"validation_loss": 2.5}))
            engine.advance(4)  # the snapshot must not see this
            assert checkpointer.wait()
        else:
            assert checkpointer.resume(engine) == at(3, metrics={"validation_loss": 2.5})
            assert engine.step == 3
            engine.check(3)
        checkpointer.close()


def by_world(jobs: list[tuple[Case, Path, str]]) -> None:
    for world in sorted({case.world_size for case, _, _ in jobs}):
        run_ranks(world, save_and_load, [job for job in jobs if job[0].world_size == world])


def test_layouts_resume_what_other_layouts_saved(tmp_path: Path) -> None:
    by_world([(case, tmp_path / name, "save-async") for name, case in LAYOUTS.items()])
    digests = {name: load_manifest(tmp_path / name / "step-00000003").parameter_digest for name in LAYOUTS}
    tied = {name for name in LAYOUTS if name.startswith("tied")}
    assert len({digests[name] for name in tied}) == 1
    assert len({digests[name] for name in LAYOUTS.keys() - tied}) == 1
    jobs = []
    for family in (sorted(tied), sorted(LAYOUTS.keys() - tied)):
        for index, saved in enumerate(family):
            others = {family[(index + shift) % len(family)] for shift in (1, 4)}
            jobs += [(LAYOUTS[name], tmp_path / saved, "load") for name in sorted(others)]
    by_world(jobs)


def test_the_files_hold_the_logical_tensors(tmp_path: Path) -> None:
    case = Case(pp=2, dp=2, distributed_optimizer=True, compute="bf16")
    run_ranks(4, save_and_load, [(case, tmp_path, "save-sync")])
    reader = CheckpointReader(tmp_path / "step-00000003", verify="hashes")
    for parameter in iter_parameters(case.plan().shape):
        value = logical_value("model", parameter, 3)
        assert torch.equal(reader.read("model", parameter.name), value.bfloat16())
        assert torch.equal(reader.read("master", parameter.name), value)
        for group in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(reader.read(group, parameter.name), logical_value(group, parameter, 3))
    manifest = reader.manifest
    assert len(manifest.shards) == 4
    assert (manifest.step, manifest.samples, manifest.optimizer_step, manifest.engine) == (3, 24, 3, "megatron")
    assert manifest.topology.stages == (((0, 1),), ((2, 3),))
    assert {"torch", "llama-scale"} <= manifest.versions.keys()


def test_either_precision_resumes_the_other(tmp_path: Path) -> None:
    fp32, bf16 = Case(tp=2), Case(tp=2, compute="bf16")
    run_ranks(2, save_and_load, [(fp32, tmp_path / "fp32", "save"), (bf16, tmp_path / "bf16", "save")])
    # An fp32 engine gets the fp32 masters, a bf16 engine masters equal to the fp32 weights: nothing is lost.
    run_ranks(2, save_and_load, [(bf16, tmp_path / "fp32", "load"), (fp32, tmp_path / "bf16", "load")])


def _fails_once(case: Case, root: Path, asynchronous: bool) -> list[str]:
    rank = start()
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llama_scale").addHandler(handler)
    checkpointer, engine = make(case, root, asynchronous=asynchronous, keep_last=1)
    engine.advance(1)
    checkpointer.save(engine, at(1))
    assert checkpointer.wait()
    before = sorted(p.name for p in root.iterdir())
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    engine.advance(2)
    checkpointer.save(engine, at(2))
    assert checkpointer.wait() is not asynchronous  # a save in the background fails only now
    assert sorted(p.name for p in root.iterdir()) == before == ["step-00000001"]
    assert checkpointer.saved_step == 1
    try:
        checkpointer.save(engine, at(2), final=True)
    except CheckpointError as error:
        errors.append(f"final: {error}")
    assert sorted(p.name for p in root.iterdir()) == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    engine.advance(3)
    checkpointer.save(engine, at(3), final=True)
    assert checkpointer.close()
    return errors


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_on_one_rank_fails_the_save_but_not_the_training(tmp_path: Path, asynchronous: bool) -> None:
    first, second = run_ranks(2, _fails_once, Case(tp=2), tmp_path, asynchronous)
    full = rf"cannot save into {tmp_path}/step-00000002.tmp-"
    assert "checkpoint of step 2 was NOT saved (the last good one is step 1): " + full in first[0]
    assert "shard-00001.safetensors needs" in first[0] and "lower checkpoint.keep_last" in first[0]
    assert [e for e in first + second if e.startswith("final: ")] == [second[-1]] * 2
    assert full in second[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]
    verify_files(tmp_path / "step-00000003")


def _expect_error(case: Case, root: Path, action: str) -> str:
    checkpointer, engine = make(case, root)
    with pytest.raises(CheckpointError) as caught:
        if action == "resume":
            checkpointer.resume(engine)
        elif action == "init":
            checkpointer.init_from(engine, root / "step-00000003")
        else:
            checkpointer.save(engine, at(9), final=True)
    return str(caught.value)


def test_a_damaged_shard_is_refused_by_name_on_every_rank(tmp_path: Path) -> None:
    case = Case(tp=2, dp=2)
    run_ranks(4, save_and_load, [(case, tmp_path, "save")])
    shard = tmp_path / "step-00000003" / "shard-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for action in ("resume", "init"):
        errors = run_ranks(2, _expect_error, Case(tp=2), tmp_path, action)
        assert len(set(errors)) == 1
        assert f"checkpoint step-00000003 is damaged: {shard}: its SHA-256 is not the one" in errors[0]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_ranks(1, save_and_load, [(Case(), tmp_path, "save")])
    other = Case(shape={"ffn_hidden_size": 64, "rope_theta": 500.0})
    (error,) = run_ranks(1, _expect_error, other, tmp_path, "resume")
    assert "is of another model (ffn_hidden_size: 48 saved, 64 wanted; rope_theta: 10000.0 saved, 500.0" in error
    (error,) = run_ranks(1, _expect_error, other, tmp_path, "init")
    assert "rope_theta" not in error and "ffn_hidden_size" in error


def _save_without_optimizer(root: Path) -> None:
    checkpointer, engine = make(Case(), root, save_optimizer=False)
    engine.advance(3)
    checkpointer.save(engine, at(3), final=True)
    checkpointer.init_from(engine, root / "step-00000003")
    assert engine.step == 0


def test_without_optimizer_state_only_a_warm_start_is_possible(tmp_path: Path) -> None:
    run_ranks(1, _save_without_optimizer, tmp_path)
    (error,) = run_ranks(1, _expect_error, Case(), tmp_path, "resume")
    assert "holds no optimizer state (checkpoint.save_optimizer: false" in error
    assert "model.init_from" in error


class ForgetfulEngine(StateEngine):
    """Loses a tensor while loading, as a real defect would."""

    def load(self, reader: Any, *, optimizer: bool, step: int = 0) -> None:
        super().load(reader, optimizer=optimizer, step=step)
        self.state["exp_avg", "decoder.layers.1.mlp.linear_fc2.weight"].view(-1)[7] += 1e-3


def _forget(root: Path) -> None:
    case = Case(tp=2)
    checkpointer = Checkpointer(root, spec=case.spec(), plan=case.plan())
    engine = ForgetfulEngine(case, start())
    with pytest.raises(CheckpointError, match=r"exp_avg/decoder\.layers\.1\.mlp\.linear_fc2\.weight differs after"):
        checkpointer.resume(engine)


def test_state_that_does_not_arrive_is_found(tmp_path: Path) -> None:
    run_ranks(1, save_and_load, [(Case(), tmp_path, "save")])
    run_ranks(2, _forget_after_start, tmp_path)


def _forget_after_start(root: Path) -> None:
    start()
    _forget(root)


def _life(root: Path) -> list[str]:
    case = replace(Case(tp=2))
    spec = spec_of(case, keep_last=2, keep_best=True)
    rank = start()
    engine = StateEngine(case, rank)
    checkpointer = Checkpointer(root, spec=spec, plan=case.plan())
    assert checkpointer.resume(engine) is None
    for step, loss in enumerate((5.0, 1.0, 3.0, 2.0, None), start=1):
        engine.advance(step)
        checkpointer.save(engine, at(step, metrics={"validation_loss": loss}))
    checkpointer.save(engine, at(5), final=True)  # already on its way: waits, and does not write again
    names = sorted(p.name for p in root.iterdir())
    torch.manual_seed(99 + rank)
    checkpointer.save(engine, at(6), final=True)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    checkpointer.resume(engine)
    assert torch.equal(torch.rand(1), drawn)
    assert checkpointer.close()
    return names


def test_the_life_of_a_folder(tmp_path: Path) -> None:
    stale = tmp_path / "step-00000001.tmp-dead"
    stale.mkdir()
    (stale / "shard-00000.safetensors").write_bytes(b"half")
    names, _ = run_ranks(2, _life, tmp_path)
    assert names == ["step-00000002", "step-00000004", "step-00000005"]
    assert newest_complete(tmp_path) == tmp_path / "step-00000006"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    errors = run_ranks(2, _expect_error, Case(tp=2), tmp_path / "file" / "checkpoints", "save")
    assert errors[0] == errors[1]
    assert f"cannot save into {tmp_path / 'file' / 'checkpoints'}: Not a directory" in errors[0]
