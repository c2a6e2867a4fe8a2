"""Where a run's weights come from: what is filled in, what is refused, and what a run folder of version 0.1 says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_scale.errors import SpecError
from llama_scale.spec.load import Loaded, check_text, dump_spec, load_run_spec, load_spec
from llama_scale.spec.run import RunSpec
from llama_scale.spec.start import from_seed
from tests.unit.spec.documents import INLINE, document

LORA = [{"name": "a", "kind": "lora"}]
TASKS: dict[str, Any] = {
    "data": {"kind": "tasks", "seq_length": 128},
    "tokenizer": {"kind": "sentencepiece", "path": "t.model"},
    "tasks": [{"name": "chat", "kind": "sft", "options": {"data": {"kind": "split_field", "path": "chat.jsonl"}}}],
}
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "rms_norm_eps": 1e-5,
}  # fmt: skip
HF = {"kind": "hf", "path": "models/tiny"}
CHECKPOINT = {**INLINE, "init_from": "checkpoints/base"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with models/tiny: config.json and a weight file, which is not looked into."""
    write_folder(tmp_path / "models" / "tiny")
    return tmp_path


def write_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def check(place: Path, *, env: dict[str, str] | None = None, stored: bool = False, **sections: Any) -> Loaded:
    text = json.dumps(document(**sections))
    return check_text(text, name="run.yaml", folder=str(place), env=env or {}, stored=stored)


def good(place: Path, **options: Any) -> RunSpec:
    found = check(place, **options)
    assert found.spec is not None, [str(problem) for problem in found.problems]
    return found.spec


def refused(place: Path, code: str, **options: Any) -> str:
    found = check(place, **options)
    assert [problem.code for problem in found.problems] == [code], found.problems
    return str(found.problems[0])


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"model": HF, "adapters": LORA}, "weights"),
        ({"model": HF, **TASKS}, "weights"),
        ({"model": HF}, "scratch"),
        ({"model": INLINE}, "scratch"),
        ({"model": {"kind": "preset", "name": "tinyllama-1.1b"}, **TASKS}, "scratch"),
        ({"model": CHECKPOINT}, "weights"),
        ({"model": CHECKPOINT, "adapters": LORA}, "weights"),
    ],
)
def test_the_default_follows_from_the_spec(place: Path, sections: dict[str, Any], start: str) -> None:
    spec = good(place, **sections)
    assert spec.train.from_ == start
    source = {"hf": "models/tiny", "inline": "checkpoints/base"}.get(sections["model"]["kind"])
    assert spec.model.init_from == (None if start == "scratch" else f"{place}/{source}")
    assert spec.model.base_name == (None if start == "scratch" else source)
    path = place / "resolved.yaml"
    path.write_text(dump_spec(spec))
    assert load_run_spec(path) == spec
    assert load_spec(path) == spec


def test_what_is_written_counts(place: Path) -> None:
    weights, scratch = {"steps": 10, "from": "weights"}, {"steps": 10, "from": "scratch"}
    assert good(place, model=HF, train=weights).model.init_from == f"{place}/models/tiny"
    for model in (HF, INLINE):
        spec = good(place, model=model, adapters=LORA, train=scratch)
        assert (spec.train.from_, spec.model.init_from) == ("scratch", None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/tiny", "models/tiny"),
        ("./models/../models/tiny", "./models/../models/tiny"),
        ("${env:ROOT}/tiny", None),
    ],
)
def test_the_base_is_called_as_its_user_wrote_it(place: Path, path: str, name: str | None) -> None:
    env = {"ROOT": str(place / "models")}
    spec = good(place, env=env, model={"kind": "hf", "path": path}, adapters=LORA)
    assert spec.model.base_name == (name or f"{place}/models/tiny")
    assert spec.model.init_from == f"{place}/models/tiny"
    named = good(place, env=env, model={"kind": "hf", "path": path, "base_name": "org/tiny"}, adapters=LORA)
    assert named.model.base_name == "org/tiny"


def test_contradictions_are_refused_each_with_its_remedy(place: Path) -> None:
    weights, scratch = {"steps": 10, "from": "weights"}, {"steps": 10, "from": "scratch"}
    told = refused(place, "adapters-base", model=INLINE, adapters=LORA)
    assert "model: {kind: hf, path: FOLDER}" in told and "train: {from: scratch}" in told
    told = refused(place, "weights-folder", model=INLINE, train=weights)
    assert "no folder is named" in told and "model.init_from" in told
    told = refused(place, "scratch-folder", model=CHECKPOINT, train=scratch)
    assert f"model.init_from names {place}/checkpoints/base; remove one of the two" in told
    refused(place, "scratch-folder", model={**HF, "init_from": "x"}, train=scratch)
    told = refused(place, "base-name", model={**HF, "base_name": "org/tiny"}, train=scratch)
    assert "remove base_name" in told
    told = refused(place, "pattern", model={**HF, "base_name": "two\nlines"}, adapters=LORA)
    assert "is not a name" in told
    assert refused(place, "choice", train={"steps": 10, "from": "seed"}).endswith("use weights or scratch")


def test_a_folder_without_its_weights_is_told_before_a_launch(place: Path) -> None:
    folder = place / "models" / "tiny"
    (folder / "model.safetensors").unlink()
    told = refused(place, "no-weights", model=HF, adapters=LORA)
    assert f"model.path: {folder} holds no weights: neither model.safetensors nor" in told
    assert "model.init_from: " in refused(place, "no-weights", model={**INLINE, "init_from": "models/tiny"})
    assert good(place, model=HF).train.from_ == "scratch"
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "only pickled weights (pytorch_model.bin)" in refused(place, "no-weights", model=HF, adapters=LORA)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    (folder / "1.safetensors").write_bytes(b"x")
    told = refused(place, "no-weights", model=HF, adapters=LORA)
    assert "holds 1 of 2 weight files; 2.safetensors is missing" in told
    for damaged in ("[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "x"):
        index.write_text(damaged)
        assert "is damaged" in refused(place, "no-weights", model=HF, adapters=LORA)


def test_what_only_the_job_sees_is_not_looked_at(place: Path) -> None:
    (place / "models" / "tiny" / "model.safetensors").unlink()
    pods = {"kind": "kubernetes", "image": "x/y:1", "claim": "runs"}
    good(place, model=HF, adapters=LORA, launcher=pods)
    image = {"kind": "slurm", "container": {"kind": "apptainer", "image": "x.sif"}}
    good(place, model=HF, adapters=LORA, launcher=image)
    good(place, model={**INLINE, "init_from": "/in/the/image"}, adapters=LORA)


@pytest.mark.parametrize(
    ("number", "value"),
    [("rope_theta", 500000.0), ("rms_norm_eps", 1e-6), ("vocab_size", 101), ("tie_word_embeddings", True)],
)
def test_numbers_of_another_model_are_refused(place: Path, number: str, value: Any) -> None:
    write_folder(place / "other", **{number: value})
    told = refused(place, "folder-numbers", model={**INLINE, "init_from": "other"})
    assert f"says {number}={value}" in told and "which takes the folder's numbers" in told
    found = good(place, model={"kind": "hf", "path": "other"}, adapters=LORA).model
    assert getattr(found, number) == value


def test_digits_of_fp32_are_no_other_model(place: Path) -> None:
    write_folder(place / "other", rms_norm_eps=9.999999747378752e-06)
    assert good(place, model={**INLINE, "init_from": "other"}).train.from_ == "weights"


def test_faults_elsewhere_hide_nothing_and_add_nothing(place: Path) -> None:
    found = check(place, model=INLINE, adapters=LORA, schedule={"kind": "constant", "warmup_steps": -1})
    assert {problem.code for problem in found.problems} == {"range", "adapters-base"}
    found = check(place, model={**HF, "init_std": -1}, train={"steps": 10, "form": "scratch"}, adapters=LORA)
    assert {problem.code for problem in found.problems} == {"range", "unknown-key"}
    for model in ({**INLINE, "init_from": 3}, {**HF, "path": "gone"}, {**INLINE, "kind": "hff"}):
        found = check(place, model=model, adapters=LORA)
        assert "adapters-base" not in {problem.code for problem in found.problems}, found.problems


def test_a_spec_that_version_0_1_stored_is_read_as_it_trained(place: Path) -> None:
    spec = good(place, model=INLINE, adapters=LORA, train={"steps": 10, "from": "scratch"})
    old = yaml.safe_load(dump_spec(spec))
    del old["train"]["from"], old["model"]["base_name"]
    path = place / "spec.yaml"
    path.write_text(yaml.safe_dump(old))
    with pytest.raises(SpecError, match="frozen base"):
        load_spec(path)
    assert load_run_spec(path) == spec
    old["model"]["init_from"] = "/gone/checkpoint"
    path.write_text(yaml.safe_dump(old))
    found = load_run_spec(path)
    assert (found.train.from_, found.model.init_from) == ("weights", "/gone/checkpoint")
    assert found.model.base_name is None  # how the path was written is not known, and no other one is exported


def test_a_stored_spec_is_good_when_its_folder_is_not_any_more(place: Path) -> None:
    spec = good(place, model=HF, adapters=LORA)
    path = place / "spec.yaml"
    path.write_text(dump_spec(spec))
    (place / "models" / "tiny" / "model.safetensors").unlink()
    assert load_run_spec(path) == spec
    with pytest.raises(SpecError, match="holds no weights"):
        load_spec(path)


def test_what_needs_no_weights_draws_them_from_the_seed(place: Path) -> None:
    spec = from_seed(good(place, model=HF, adapters=LORA))
    assert (spec.train.from_, spec.model.init_from, spec.model.base_name) == ("scratch", None, None)
    text = dump_spec(spec)
    assert check_text(text, name="run.yaml", folder="/", env={}).spec == spec
