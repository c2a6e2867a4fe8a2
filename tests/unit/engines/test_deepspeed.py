"""DeepSpeed's own config classes take every file that is emitted, and read what was meant out of it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llama_scale.engines.deepspeed import deepspeed_config, zero_stage
from llama_scale.engines.environment import engine_environment
from llama_scale.engines.files import DEEPSPEED_CONFIG, engine_files
from llama_scale.launchers.local import LocalLauncher
from tests.engines.specs import Case


def zero(stage: int, **options: Any) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage, **options}


CPU, PINNED = {"device": "cpu"}, {"device": "cpu", "pin_memory": True}
NVME = {"device": "nvme", "nvme_path": "/local/disk"}
CASES = {
    **{f"zero{stage}": Case(dp=2, engine=zero(stage)) for stage in range(4)},
    **{f"zero{stage}-bf16": Case(dp=2, compute="bf16", engine=zero(stage)) for stage in (1, 2, 3)},
    **{f"zero{stage}-overlap": Case(dp=2, engine=zero(stage, overlap_comm=True)) for stage in (1, 2, 3)},
    "pipeline": Case(pp=2, tp=2, dp=2, engine=zero(1)),
    "pipeline-zero0": Case(pp=2, engine=zero(0)),
    "accumulation": Case(dp=2, micro=2, global_batch=16, engine=zero(2)),
    "all-divided": Case(dp=4, engine=zero(3, persistence_elements=0)),
    "small-buckets": Case(dp=4, engine=zero(3, bucket_elements=1000)),
    "no-clipping": Case(dp=2, engine=zero(1), optimizer={"clip_grad_norm": 0.0}),
    "zero1-offload": Case(dp=2, engine=zero(1, offload_optimizer=CPU)),
    "zero2-offload-pinned": Case(dp=2, engine=zero(2, offload_optimizer=PINNED)),
    "zero3-offload-all": Case(dp=2, engine=zero(3, offload_optimizer=CPU, offload_parameters=PINNED)),
    "zero3-nvme": Case(dp=2, device="cuda", engine=zero(3, offload_optimizer=NVME, offload_parameters=NVME)),
}


@pytest.fixture(scope="session")
def deepspeed() -> Any:
    from llama_scale.train.deepspeed_import import deepspeed

    return deepspeed


def read_by_deepspeed(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Any]:
    from deepspeed.runtime import config as deepspeed_config_module

    emitted = deepspeed_config(case.spec(), case.plan())
    # Its check of the batch asks the process group how many replicas there are.
    ranks = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda *_: case.dp)
    monkeypatch.setattr(deepspeed_config_module, "dist", ranks)
    return emitted, deepspeed_config_module.DeepSpeedConfig(json.loads(json.dumps(emitted)))


@pytest.mark.parametrize("name", CASES)
def test_deepspeed_reads_what_was_meant(name: str, deepspeed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    emitted, read = read_by_deepspeed(case, monkeypatch)
    spec, plan = case.spec(), case.plan()
    assert spec.engine.kind == "deepspeed"

    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu) == (case.global_batch, case.micro)
    assert read.gradient_accumulation_steps == plan.batch.accumulation
    assert read.zero_config.stage == zero_stage(spec)
    assert read.zero_config.overlap_comm == spec.engine.overlap_comm
    assert read.zero_config.reduce_bucket_size == spec.engine.bucket_elements
    assert read.zero_config.param_persistence_threshold == spec.engine.persistence_elements
    assert read.gradient_clipping == (spec.optimizer.clip_grad_norm if zero_stage(spec) else 0.0)
    assert read.bfloat16_config.enabled == (spec.precision.compute == "bf16")
    assert read.bfloat16_config.check_grad_overflow
    assert not read.float16_config.enabled
    assert read.grad_accum_dtype == spec.precision.gradients
    assert not read.zero_force_ds_cpu_optimizer
    assert not read.wall_clock_breakdown
    for asked, got in (
        (spec.engine.offload_optimizer, read.zero_config.offload_optimizer),
        (spec.engine.offload_parameters, read.zero_config.offload_param),
    ):
        assert (asked is None) == (got is None)
        if asked is not None:
            assert (asked.device, asked.pin_memory) == (str(got.device), got.pin_memory)
            assert asked.nvme_path == (None if got.nvme_path is None else str(got.nvme_path))
    assert json.loads(json.dumps(emitted)) == emitted


@pytest.mark.parametrize("name", CASES)
def test_every_key_is_one_that_deepspeed_knows(name: str, deepspeed: Any) -> None:
    # DeepSpeed ignores unknown keys at the top level; those of its sections it refuses by itself.
    from deepspeed.runtime import constants, precision_config
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    known = {value for value in vars(constants).values() if isinstance(value, str)}
    known |= {ZERO_OPTIMIZATION, precision_config.BFLOAT16}
    assert set(deepspeed_config(CASES[name].spec(), CASES[name].plan())) <= known


def test_bundle_holds_what_the_worker_computes() -> None:
    case = CASES["zero2-offload-pinned"]
    spec, plan = case.spec(), case.plan()

    bundle = LocalLauncher().render(spec, plan, python="/usr/bin/python3")

    assert json.loads(bundle.files[DEEPSPEED_CONFIG]) == deepspeed_config(spec, plan)
    for kind in ("megatron", "ddp"):
        other = replace(case, engine={"kind": kind})
        assert engine_files(other.spec(), other.plan()) == {}


def test_stage_is_raised_only_for_the_pipeline_without_zero() -> None:
    assert [zero_stage(Case(dp=2, engine=zero(stage)).spec()) for stage in range(4)] == [0, 1, 2, 3]
    assert [zero_stage(Case(pp=2, engine=zero(stage)).spec()) for stage in (0, 1)] == [1, 1]


def test_environment_keeps_deepspeed_from_guessing() -> None:
    assert engine_environment(Case(engine=zero(1)).spec()) == {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    assert engine_environment(Case(engine=zero(1), device="cuda").spec()) == {"DS_ACCELERATOR": "cuda"}
    assert engine_environment(Case(engine={"kind": "ddp"}).spec()) == {}
