"""Checkpoints as a user meets them: warm starts and damaged files through the real agent and worker."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import GenerationConfig

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.convert.export_hf import export_hf
from tests.engines.run_folders import agent, finish, make_run, verdict


def test_a_run_starts_from_the_weights_of_another_and_refuses_damage_by_name(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first")
    with agent(first) as process:
        code, output = finish(process)
    assert code == 0, output
    checkpoint = first / "checkpoints" / "step-00000004"

    (checkpoint / "hf").mkdir()
    (checkpoint / "hf" / "generation_config.json").write_text('{"eos_token_id": [5, 6], "top_k": 3}')
    # At this rate a step changes no bit of a weight, so the weights are still those of the first run.
    still = ("optimizer.lr=1e-30", "schedule.kind=constant", "train.steps=1")
    warm = make_run(tmp_path / "warm", *still, f"model.init_from={checkpoint}")
    with agent(warm) as process:
        code, output = finish(process)
    assert code == 0, output
    assert f"started from the weights of {checkpoint}" in (warm / "logs" / "rank-00000.log").read_text()
    saved = load_manifest(warm / "checkpoints" / "step-00000001")
    assert saved.parameter_digest == load_manifest(checkpoint).parameter_digest
    assert (saved.step, saved.optimizer_step) == (1, 1)
    shutil.rmtree(checkpoint / "hf")  # the run has kept it
    export_hf(warm / "checkpoints" / "step-00000001", tmp_path / "out")
    made = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (made.eos_token_id, made.top_k) == ([5, 6], 3)

    shard = checkpoint / "shard-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with agent(first, "--attempt", "1") as process:
        code, output = finish(process)
    assert code == 5, output
    failure = verdict(first, attempt=1)["first_failure"]
    assert (
        f"checkpoint step-00000004 is damaged: {shard}: its SHA-256 is not the one in its manifest" in failure["error"]
    )
