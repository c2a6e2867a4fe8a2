"""DeepSpeed's own checkpoints of our models: every layout is read, and holds the weights bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import GenerationConfig

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.convert.deepspeed_folder import (
    DividedReader,
    PipelineReader,
    ReplicatedReader,
    import_deepspeed,
    open_folder,
)
from llama_scale.errors import ConvertError
from llama_scale.spec.load import dump_spec
from llama_scale.spec.tokenizer import HfTokenizer
from llama_scale.train.checkpointing import Position
from llama_scale.train.deepspeed_import import quiet
from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.test_resume import checkpointer_of
from tests.engines.training import start, train_steps
from tests.live_runs import run_cli


def zero(stage: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": stage, "persistence_elements": 1000}


TIED = {"tie_word_embeddings": True}
CASES: dict[str, tuple[Case, type]] = {
    "zero1-tp2": (Case(tp=2, dp=2, engine=zero(1)), ReplicatedReader),
    "zero2-bf16": (Case(dp=2, compute="bf16", engine=zero(2)), ReplicatedReader),
    "zero3-dp4": (Case(dp=4, engine=zero(3)), DividedReader),
    "zero3-tp2": (Case(dp=2, tp=2, engine=zero(3)), DividedReader),
    "pipeline": (Case(pp=2, tp=2, engine=zero(1), stage_layers=(1, 3)), PipelineReader),
    "pipeline-tied": (Case(pp=2, dp=2, engine=zero(1), shape=TIED), PipelineReader),
}


def save_both(case: Case, root: Path) -> None:
    engine = start(case)
    train_steps(engine, case, steps=1)
    checkpointer = checkpointer_of(case, root / "ours")
    checkpointer.save(engine, Position(step=1, samples=case.global_batch), final=True)
    checkpointer.close()
    with quiet():
        engine._engine.save_checkpoint(str(root / "deepspeed"))


def imported(case: Case, root: Path, name: str = "imported") -> Any:
    plan = case.plan()
    source = root / "deepspeed"
    return import_deepspeed(source, root / name, shape=plan.shape, vocab_pad_multiple=plan.vocab_pad_multiple)


@pytest.mark.parametrize("name", CASES)
def test_folder_of_deepspeed_holds_the_same_weights(tmp_path: Path, name: str) -> None:
    case, reader = CASES[name]
    run_ranks(case.world_size, save_both, case, tmp_path)

    assert isinstance(open_folder(tmp_path / "deepspeed"), reader)
    manifest = imported(case, tmp_path)

    ours = load_manifest(tmp_path / "ours" / "step-00000001")
    assert manifest.tensors["model"] == ours.tensors["model"]
    assert manifest.parameter_digest == ours.parameter_digest
    if name == "zero1-tp2":
        check_command(case, tmp_path)
        check_faults(case, tmp_path)


def check_command(case: Case, root: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<e>": 1}, unk_token="a"))
    (root / "tokenizer").mkdir()
    tokenizer.save(str(root / "tokenizer" / "tokenizer.json"))
    (root / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "<e>"}')
    named = HfTokenizer(kind="hf", path=str(root / "tokenizer"))
    (root / "spec.yaml").write_text(dump_spec(case.spec().model_copy(update={"tokenizer": named})))
    arguments = ("convert", "import", "--from", root / "deepspeed", "--to", root / "by-command")

    refused = run_cli(*arguments)
    assert refused.returncode == 6
    assert "does not say what model it holds; add --spec SPEC" in refused.stderr
    refused = run_cli(*arguments, "--spec", root / "spec.yaml", "--tensor", "2")
    assert refused.returncode == 6
    assert "--spec does not go with a layout, --dtype or --max-ram" in refused.stderr
    refused = run_cli("convert", "export", "--from", root / "deepspeed", "--to", root / "hf")
    assert refused.returncode == 6
    assert "is a checkpoint in DeepSpeed's own format" in refused.stderr

    done = run_cli(*arguments, "--spec", root / "spec.yaml")
    assert done.returncode == 0, done.stderr
    assert load_manifest(root / "by-command").parameter_digest == load_manifest(root / "imported").parameter_digest
    done = run_cli("convert", "export", "--from", root / "by-command", "--to", root / "hf", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert GenerationConfig.from_pretrained(root / "hf").eos_token_id == 1  # of the spec's tokenizer, which is there
    assert (root / "hf" / "tokenizer.json").is_file()


def check_faults(case: Case, root: Path) -> None:
    with pytest.raises(ConvertError, match=r"is of another model \(unknown: decoder.layers.3"):
        imported(replace(case, shape={"num_layers": 3}), root, "other")
    with pytest.raises(ConvertError, match=r"has \d+ elements on tensor parallel rank 0 of 2, the model has"):
        imported(replace(case, shape={"ffn_hidden_size": 64}), root, "other")
    file = root / "deepspeed" / "global_step1" / "mp_rank_01_model_states.pt"
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    with pytest.raises(ConvertError, match=r"mp_rank_01_model_states\.pt cannot be read"):
        imported(case, root, "other")
    file.rename(file.with_name("mp_rank_03_model_states.pt"))
    with pytest.raises(ConvertError, match="is incomplete: 2 of 4 files"):
        imported(case, root, "other")
    assert not (root / "other").exists()


def test_other_folders_are_no_checkpoints_of_deepspeed(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="is no checkpoint of DeepSpeed"):
        open_folder(tmp_path)
