"""Files that version 0.1 wrote are read as 0.1 read them: runs, checkpoints and exports, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.convert.forms import export
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.reshard import reshard
from llama_scale.convert.shards import Layout
from llama_scale.data.task_tokenizer import TaskTokenizer, starts_texts
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.view import look
from llama_scale.spec.load import load_run_spec
from llama_scale.train.run_tasks import make_tasks
from llama_scale.train.task_data_store import PreparedSplit
from tests.files_of_v0_1 import EXPECTED, FIXTURES, RUNS, copy_files
from tests.unit.cli.calling import call

CHECKPOINT = "checkpoints/step-00000002"
INPUTS = FIXTURES / "inputs"
FORMS = {"hf": "ddp", "merged": "sft", "peft": "sft", "mixture": "mixture", "sentence-transformers": "mixture"}


def values(reader: CheckpointReader) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (group, name): reader.read(group, name) for group in reader.manifest.tensors for name in reader.tensors(group)
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of every safetensors file of a folder, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_known_and_would_go_on_as_it_was(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_files(tmp_path, "imported", f"runs/{name}") / "runs" / name

    view = look(RunFolder(run)).to_dict()
    assert (view["state"], view["step"], view["checkpoint"]) == ("succeeded", 2, "step-00000002")
    assert view["loss"] == EXPECTED[name]["curve"][1]["loss"]

    assert call("resume", run, "--set", "train.steps=5", "--plan", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "kind": "reuse",
        "checkpoint": "step-00000002",
        "step": 2,
        "steps": 5,
        "reasons": ["same layout"],
        "changes": ["train.steps: 2 -> 5"],
        "followed": [],
    }


@pytest.mark.parametrize("name", [*RUNS, "imported"])
def test_every_tensor_of_a_checkpoint_is_read_and_resharded(tmp_path: Path, name: str) -> None:
    checkpoint = FIXTURES / (name if name == "imported" else f"runs/{name}/{CHECKPOINT}")
    before = CheckpointReader(checkpoint, verify="hashes")

    reshard(checkpoint, tmp_path / "cut", layout=Layout(tp_size=1, pp_size=2))

    after = CheckpointReader(tmp_path / "cut", verify="hashes")
    assert after.manifest.parameter_digest == before.manifest.parameter_digest
    assert (after.manifest.base, after.manifest.step) == (before.manifest.base, before.manifest.step)
    kept, cut = values(before), values(after)
    assert cut.keys() == kept.keys()
    assert [key for key, tensor in cut.items() if not torch.equal(tensor, kept[key])] == []


@pytest.mark.parametrize("form", FORMS)
def test_exports_hold_what_they_held(tmp_path: Path, form: Any) -> None:
    run = copy_files(tmp_path, "imported", f"runs/{FORMS[form]}") / "runs" / FORMS[form]

    export(run / CHECKPOINT, tmp_path / "out", form=form, proven=False)

    then, now = tensors(FIXTURES / "exports" / form), tensors(tmp_path / "out")
    assert now.keys() == then.keys()
    merged = form in ("merged", "sentence-transformers")  # matrix products, which processors round differently
    for name, tensor in now.items():
        torch.testing.assert_close(tensor, then[name], rtol=1e-5 if merged else 0, atol=1e-6 if merged else 0, msg=name)
    for path in (FIXTURES / "exports" / form).rglob("*.json"):  # the reports tell of paths and proofs
        assert (
            path.name == "report.json" or (tmp_path / "out" / path.relative_to(FIXTURES / "exports" / form)).is_file()
        )


def test_what_was_imported_is_what_transformers_had_written(tmp_path: Path) -> None:
    root = copy_files(tmp_path, "imported")

    export(root / "imported", root / "out", form="hf", proven=False)

    theirs, ours = (load_file(folder / "model.safetensors") for folder in (root / "inputs" / "hf", root / "out"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    chats = [(folder / "chat_template.jinja").read_text() for folder in (root / "inputs" / "hf", root / "out")]
    assert chats[0] == chats[1]
    again = import_hf(root / "inputs" / "hf", root / "again", layout=Layout())
    assert again.parameter_digest == load_manifest(root / "imported").parameter_digest


def test_prepared_examples_are_read() -> None:
    folders = sorted(FIXTURES.glob("runs/*/examples/*/train"))
    assert len(folders) == 6
    for folder in folders:
        split = PreparedSplit(folder)
        rows = [split.row(number) for number in range(len(split))]
        assert sum(len(row.tokens) for row in rows) == split.record.tokens
        assert all(row.weights.any() for row in rows)


@pytest.mark.parametrize("name", ["mixture", "sft", "head"])
def test_examples_that_are_prepared_today_for_an_old_run_equal_its_own(tmp_path: Path, name: str) -> None:
    root = copy_files(tmp_path, "imported", f"runs/{name}")
    run = root / "runs" / name
    folder = run / "examples"
    spec = load_run_spec(str(run / "spec.yaml"))
    assert not starts_texts(folder)

    for task in make_tasks(spec, starts_texts=starts_texts(folder)):
        features = [f for example in task.task.examples("train") for f in task.task.encode(example)]
        (place,) = folder.glob(f"{task.name}-*/train")
        kept = np.fromfile(place / "tokens.bin", np.int32)
        assert np.concatenate([feature.tokens for feature in features]).tolist() == kept.tolist()


def test_a_sentencepiece_model_has_the_ids_that_it_was_exported_with() -> None:
    then, now = AutoTokenizer.from_pretrained(FIXTURES / "exports" / "hf"), TaskTokenizer(INPUTS / "tokenizer.model")
    for file in sorted(INPUTS.glob("*.jsonl")):
        text = file.read_text(encoding="utf-8")
        assert [*now.start_ids, *now.encode(text)] == then(text)["input_ids"]
    assert (now.eos_id, now.vocab_size) == (then.eos_token_id, len(then))
