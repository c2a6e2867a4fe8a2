"""A run on a Hugging Face folder starts from its weights: the first loss is that of transformers on the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from llama_scale.checkpoint.bases import bases_in
from llama_scale.checkpoint.manifest import StartRecord
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.start import describe_start, ensure_weights
from llama_scale.errors import ConvertError
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.spec.load import dump_spec, load_run_spec, load_spec
from tests.engines.harness import join, run_ranks
from tests.engines.training import in_turn
from tests.live_runs import SPEC, run_cli, write_tokens
from tests.unit.convert.tiny import Tiny

ROWS, LENGTH = 8, 16
CONFIG = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
CONFIG |= {"num_key_value_heads": 2, "head_dim": 8}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp-dp2": {"parallel": {"data": 2}, "engine": {"kind": "ddp"}},
    "zero3-dp2": {"parallel": {"data": 2}, "engine": {"kind": "deepspeed", "zero": 3, "persistence_elements": 0}},
    "megatron-tp2-pp2": {"parallel": {"tensor": 2, "pipeline": 2}, "engine": {"kind": "megatron"}},
}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"train": {"steps": 4}, "adapters": [{"name": "a", "kind": "lora", "options": {"rank": 2}}]},
    "full": {"train": {"steps": 4, "from": "weights"}},
}


def row(number: int) -> dict[str, torch.Tensor]:
    """Return a row of random tokens, with another share of counted positions than its neighbours."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(61, (LENGTH + 1,), generator=generator)
    mask = (torch.rand(LENGTH, generator=generator) > number / (2 * ROWS)).float()
    return {"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask, "position_ids": torch.arange(LENGTH)}


def make_run(root: Path, source: Path, name: str, **sections: Any) -> Path:
    """Make the run folder of a spec that names a folder, as `launch` does."""
    layout = {"data": 1, "tensor": 1, "pipeline": 1} | sections["parallel"]
    document = {
        "version": 1,
        "name": "tiny",
        "model": {"kind": "hf", "path": os.path.relpath(source, root), "vocab_pad_multiple": 8},
        "data": {"kind": "indexed", "blend": [{"path": "none"}], "seq_length": LENGTH},
        "batch": {"global": ROWS, "micro": 1},
        "precision": {"compute": "fp32"},
        "cluster": {"device": "cpu", "devices_per_node": layout["data"] * layout["tensor"] * layout["pipeline"]},
        **sections,
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(document))
    spec = load_spec(root / f"{name}.yaml")
    run = RunFolder(root / "runs" / name)
    run.path.mkdir(parents=True)
    run.spec.write_text(dump_spec(spec))
    run.save_start(ensure_weights(describe_start(spec), spec, make_plan(spec), bases=bases_in(root / "runs")))
    return run.path


def first_losses(runs: list[Path]) -> list[float]:
    """Start each run as a worker does and return the loss of its first step."""
    from llama_scale.train.checkpointing import Checkpointer
    from llama_scale.train.engine import make_engine

    losses = []
    for run in in_turn(runs):
        spec = load_run_spec(run / "spec.yaml")
        plan = make_plan(spec)
        coordinates = join(plan)
        engine = make_engine(spec, plan)
        checkpointer = Checkpointer(run / "checkpoints", spec=spec, plan=plan, run_dir=run)
        assert checkpointer.resume(engine) is None
        checkpointer.warm_start(engine)
        dp_size = plan.topology.dp_size
        numbers = range(coordinates.dp_rank, ROWS, dp_size)
        batch: Any = [{key: value[None] for key, value in row(number).items()} for number in numbers]
        losses.append(engine.train_step(batch, 1e-3).loss)
        checkpointer.close()
        engine.close()
    return losses


def outside_loss(source: Path) -> float:
    """Return the token-weighted cross-entropy of transformers' model of a folder on all rows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    batch = {key: torch.stack([row(number)[key] for number in range(ROWS)]) for key in row(0)}
    with torch.no_grad():
        logits = model(input_ids=batch["tokens"]).logits.double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    mask = batch["loss_mask"].flatten().double()
    return float((losses * mask).sum() / mask.sum())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    for name, tied in (("tied", True), ("untied", False)):
        Tiny(config={**CONFIG, "tie_word_embeddings": tied}).write(folder / name)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_loss_is_that_of_transformers(root: Path, layout: str) -> None:
    cells = [(model, way) for model in ("tied", "untied") for way in WAYS]
    runs = [make_run(root, root / m, f"{layout}-{m}-{way}", **LAYOUTS[layout], **WAYS[way]) for m, way in cells]
    world = load_run_spec(runs[0] / "spec.yaml").cluster.world_size

    found = run_ranks(world, first_losses, runs)[0]

    expected = {model: outside_loss(root / model) for model in ("tied", "untied")}
    assert abs(expected["tied"] - expected["untied"]) > 0.1
    assert found == pytest.approx([expected[model] for model, _ in cells], rel=1e-5)
    imported = [path.name for path in bases_in(root / "runs").iterdir() if not path.name.startswith(".")]
    assert len(imported) == 2  # one a folder, whatever the layout and the way


def test_a_changed_weight_is_seen_although_size_and_time_are_the_same(tmp_path: Path) -> None:
    source = Tiny(config=CONFIG).write(tmp_path / "model")
    before = make_run(tmp_path, source, "before", **LAYOUTS["ddp-dp2"], **WAYS["lora"])
    file = source / "model.safetensors"
    times = file.stat()
    tensors = load_file(file)
    tensors["model.layers.2.mlp.down_proj.weight"][3, 5] += 4
    save_file(tensors, file, metadata={"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    after = make_run(tmp_path, source, "after", **LAYOUTS["ddp-dp2"], **WAYS["lora"])

    old, new = run_ranks(2, first_losses, [before, after])[0]

    assert new == pytest.approx(outside_loss(source), rel=1e-5)
    assert abs(new - old) > 1e-4  # the run that was made before still has the weights that it was made for


LORA = (
    SPEC.replace("model: {kind: inline, hidden_size: 32, ffn_hidden_size: 64, num_layers: 4, num_heads: 4, ", "MODEL")
    .replace("MODELnum_kv_heads: 2, head_dim: 8,\n  vocab_size: 101, ", "model: {kind: hf, path: ../model, ")
    .replace("parallel: {tensor: 2, pipeline: 2}", "parallel: {data: 1}")
    .replace("devices_per_node: 4", "devices_per_node: 1")
    .replace("every_steps: 2", "every_steps: 1")
    + "adapters: [{name: a, kind: lora, options: {rank: 2}}]\noptimizer: {lr: 1e-2}\n"
)


# PEFT asks transformers by the older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_run_goes_on_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Tiny(config={**CONFIG, "vocab_size": 101}).write(tmp_path / "model")
    (tmp_path / "specs").mkdir()
    write_tokens(tmp_path / "specs" / "tokens")
    (tmp_path / "specs" / "spec.yaml").write_text(LORA)
    runs = ("--runs-dir", tmp_path / "runs")
    done = run_cli("launch", tmp_path / "specs" / "spec.yaml", "--set", "train.steps=1", *runs)
    assert done.returncode == 0, done.stderr
    assert "importing the weights of ../model into" in done.stderr
    assert "frozen base: ../model, digest " in done.stderr
    run = RunFolder(Path(done.stdout.strip()))
    start = run.load_start()
    assert start is not None

    source.rename(tmp_path / "elsewhere")
    done = run_cli("resume", run.path, "--set", "train.steps=2")
    assert done.returncode == 0, done.stderr
    assert loss_of_peft(run, tmp_path, monkeypatch) == pytest.approx(_losses(run)[1], rel=1e-5)

    _check_named(run, start)

    # Without the copy, an export imports the folder again, if it is still what the adapter was trained on.
    shutil.rmtree(bases_in(tmp_path / "runs"))
    config = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    (tmp_path / "elsewhere").rename(source)
    with pytest.raises(ConvertError, match="has changed since: its digest is"):
        export_hf(run.checkpoints / "step-00000002", tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()


def loss_of_peft(run: RunFolder, root: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the loss of step 2 as PEFT computes it: on the folder that the exported adapter of step 1 names."""
    from peft import AutoPeftModelForCausalLM

    from llama_scale.convert.peft import export_peft
    from llama_scale.train.samples import make_samples

    (root / "elsewhere").rename(root / "model")
    export_peft(run.checkpoints / "step-00000001", root / "adapter")
    monkeypatch.chdir(root / "specs")  # the name is relative to the spec, as it is there
    model = AutoPeftModelForCausalLM.from_pretrained(root / "adapter", dtype=torch.float32)
    assert model.peft_config["default"].base_model_name_or_path == "../model"
    monkeypatch.chdir(root)
    (root / "model").rename(root / "elsewhere")
    spec = load_run_spec(run.spec)
    samples = make_samples(spec, split="train", run_dir=run.path)
    batch = samples.global_batch(4, batch=make_plan(spec).batch, dp_rank=0, dp_size=1)
    total = weight = 0.0
    for part in batch:
        with torch.no_grad():
            logits = model(input_ids=part["tokens"]).logits.double()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part["labels"].flatten(), reduction="none")
        mask = part["loss_mask"].flatten().double()
        total, weight = total + float((losses * mask).sum()), weight + float(mask.sum())
    return total / weight


def _losses(run: RunFolder) -> list[float]:
    return [float(yaml.safe_load(line)["loss"]) for line in run.metrics.read_text().splitlines()]


def _check_named(run: RunFolder, start: StartRecord) -> None:
    """Check that log, status, report and manifest name the base and its digest."""
    from llama_scale.checkpoint.manifest import load_manifest
    from llama_scale.cli.status import describe_run
    from llama_scale.report.collect import collect
    from llama_scale.report.summary import summary_table
    from llama_scale.runs.view import look

    words = f"../model, digest {str(start.digest)[:12]}"
    assert f"frozen base: {words}" in run.rank_log(0).read_text()
    assert f"weights     {words}" in describe_run(look(run))
    facts = collect(run, name="run", hardware_of=lambda spec: None)
    assert ("weights", f"{words} (frozen base)") in summary_table([facts]).rows
    manifest = load_manifest(run.checkpoints / "step-00000002")
    assert manifest.started_from == start
