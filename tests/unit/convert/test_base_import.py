"""Imported weights that runs share: when they are made, found again, made anew, and what exports say of them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file

from llama_scale.checkpoint.bases import bases_in, find_imported, locked
from llama_scale.checkpoint.manifest import Manifest, StartRecord, load_manifest
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.convert import base_import
from llama_scale.convert.assemble import export_mixture
from llama_scale.convert.base_import import import_base
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.peft import export_peft
from llama_scale.convert.shards import Layout
from llama_scale.convert.start import describe_start, ensure_weights, find_weights
from llama_scale.errors import ConvertError, LaunchError, SpecError
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.run import RunSpec
from tests.unit.convert.adapted import LORA, adapter_checkpoint, record
from tests.unit.convert.tiny import Tiny, write_weights
from tests.unit.plan.specs import run_spec

TINY = Tiny(config={"num_key_value_heads": 4})
SHAPE = {
    "hidden_size": 24, "ffn_hidden_size": 36, "num_layers": 6, "num_heads": 12, "num_kv_heads": 4, "head_dim": 6,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count the proofs in place of making them, which takes processes; tests/engines makes them."""
    made: list[Path] = []

    def counted(source: Path, **options: Any) -> Callable[[Path], dict[str, Any]]:
        def proof(folder: Path) -> dict[str, Any]:
            time.sleep(0.1)
            made.append(source)
            return {"passed": True}

        return proof

    monkeypatch.setattr(base_import, "import_proof", counted)
    return made


def take(source: Path, root: Path) -> base_import.ImportedBase:
    return import_base(source, bases_in(root), layout=Layout(tp_size=2))


def spec_of(source: Path, **model: Any) -> RunSpec:
    """Return a resolved spec whose weights come from a folder."""
    return run_spec(model={**SHAPE, "init_from": str(source), "base_name": "as/written", **model})


def start_of(source: Path, root: Path) -> StartRecord:
    spec = spec_of(source)
    return ensure_weights(describe_start(spec), spec, make_plan(spec), bases=bases_in(root))


def names(bases: Path) -> list[str]:
    return sorted(path.name for path in bases.iterdir() if not path.name.endswith(".lock"))


def test_a_folder_is_imported_once_and_proven(tmp_path: Path, proofs: list[Path]) -> None:
    source = TINY.write(tmp_path / "hf")
    first = take(source, tmp_path)
    assert take(source, tmp_path) == first
    assert proofs == [source]
    assert json.loads((first.folder / "report.json").read_text())["verify"] == {"passed": True}
    assert (first.folder / "hf" / "config.json").is_file()


@pytest.mark.parametrize("files", [1, 3])
def test_the_digest_is_that_of_sha256sum(tmp_path: Path, proofs: list[Path], files: int) -> None:
    source = Tiny(files=files).write(tmp_path / "hf")
    command = "LC_ALL=C sha256sum config.json *.safetensors | sha256sum"
    told = subprocess.run(["bash", "-c", command], cwd=source, capture_output=True, text=True, check=True).stdout
    assert import_base(source, bases_in(tmp_path), layout=Layout()).digest == told.split()[0]


def test_any_change_of_the_folder_is_another_import(tmp_path: Path, proofs: list[Path]) -> None:
    source = TINY.write(tmp_path / "hf")
    seen = {take(source, tmp_path).folder}
    weights = source / "model.safetensors"
    times = weights.stat()
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # only the kernel's own time tells
    changed = take(source, tmp_path)
    assert changed.folder not in seen
    assert (
        CheckpointReader(changed.folder).read("model", "decoder.final_layernorm.weight")[0]
        == (tensors["model.norm.weight"][0])
    )
    seen.add(changed.folder)
    (source / "tokenizer_config.json").write_text("{}")
    assert take(source, tmp_path).folder not in seen  # the copy keeps what came with the model
    assert take(TINY.write(tmp_path / "other"), tmp_path).folder not in seen


@pytest.mark.parametrize(
    ("source_dtype", "kept"),
    [(torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float32")],
    ids=["fp32", "bf16", "fp16"],
)
def test_no_element_type_loses_anything(
    tmp_path: Path, proofs: list[Path], source_dtype: torch.dtype, kept: str
) -> None:
    tiny = Tiny(dtype=source_dtype)
    folder = take(tiny.write(tmp_path / "hf"), tmp_path).folder
    reader = CheckpointReader(folder)
    assert {entry.dtype for entry in reader.manifest.tensors["model"].values()} == {kept}
    found = reader.read("model", "embedding.word_embeddings.weight")
    assert torch.equal(found.float(), tiny.tensors()["model.embed_tokens.weight"].float())


def test_several_element_types_become_the_widest(tmp_path: Path, proofs: list[Path]) -> None:
    tensors = Tiny(dtype=torch.bfloat16).tensors()
    tensors["model.norm.weight"] = Tiny().tensors()["model.norm.weight"]
    folder = take(TINY.write(tmp_path / "hf", tensors=tensors | _kv(tensors)), tmp_path).folder
    found = CheckpointReader(folder).read("model", "decoder.final_layernorm.weight")
    assert torch.equal(found, tensors["model.norm.weight"])


def _kv(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return keys and values of as many heads as the model has."""
    return {name: t[:24].clone() for name, t in tensors.items() if "k_proj" in name or "v_proj" in name}


def test_two_launches_at_once_import_once(tmp_path: Path, proofs: list[Path]) -> None:
    source = TINY.write(tmp_path / "hf")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(take(source, tmp_path).folder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert len(proofs) == 1


def test_damage_and_leftovers_are_made_good(tmp_path: Path, proofs: list[Path]) -> None:
    source = TINY.write(tmp_path / "hf")
    first = take(source, tmp_path)
    key, bases = first.folder.name, first.folder.parent
    (first.folder / "shard-00001.safetensors").unlink()
    (bases / f".{key}.tmp-dead").mkdir()
    (bases / f".{key}.tmp-dead" / "shard-00000.safetensors").write_bytes(b"half")
    assert take(source, tmp_path) == first
    assert len(proofs) == 2
    assert names(bases) == [key]


def test_a_failed_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TINY.write(tmp_path / "hf")

    def fails(*_: Any, **__: Any) -> Callable[[Path], dict[str, Any]]:
        def proof(folder: Path) -> dict[str, Any]:
            raise ConvertError("logits differ by 1")

        return proof

    monkeypatch.setattr(base_import, "import_proof", fails)
    spec = spec_of(source)
    with pytest.raises(LaunchError, match="cannot start from the weights of as/written: logits differ by 1"):
        ensure_weights(describe_start(spec), spec, make_plan(spec), bases=bases_in(tmp_path))
    assert names(bases_in(tmp_path)) == []


def test_a_source_that_changes_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TINY.write(tmp_path / "hf")

    def touched(*_: Any, **__: Any) -> Callable[[Path], dict[str, Any]]:
        def proof(folder: Path) -> dict[str, Any]:
            write_weights(source, TINY.tensors())
            return {}

        return proof

    monkeypatch.setattr(base_import, "import_proof", touched)
    with pytest.raises(ConvertError, match="was changed while it was imported; start again once it is whole"):
        take(source, tmp_path)
    assert names(bases_in(tmp_path)) == []


def test_no_room_and_no_permission_are_told(
    tmp_path: Path, proofs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TINY.write(tmp_path / "hf")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConvertError, match=r"cannot be imported: .*file/\.bases: Not a directory"):
        take(source, tmp_path / "file")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 4096})())
    with pytest.raises(ConvertError, match=r"bytes are needed in .*\.bases, 4,096 are free; free some space"):
        take(source, tmp_path)
    assert names(bases_in(tmp_path)) == []


def test_a_folder_of_another_model_is_refused_where_the_job_imports(tmp_path: Path, proofs: list[Path]) -> None:
    spec = spec_of(TINY.write(tmp_path / "hf"), rope_theta=500000.0)
    with pytest.raises(SpecError, match=r"says rope_theta=10000\.0, and the model has 500000\.0"):
        ensure_weights(describe_start(spec), spec, make_plan(spec), bases=bases_in(tmp_path))


def test_a_lost_copy_is_made_again_from_the_same_source_only(tmp_path: Path, proofs: list[Path]) -> None:
    source = TINY.write(tmp_path / "hf")
    spec = spec_of(source)
    plan, bases = make_plan(spec), bases_in(tmp_path)
    start = start_of(source, tmp_path)
    assert start.words() == f"as/written, digest {str(start.digest)[:12]}"

    def again() -> StartRecord:
        return ensure_weights(start, spec, plan, bases=bases)

    source.rename(tmp_path / "away")
    assert again() == start  # the copy is enough
    Path(start.weights or "").rename(tmp_path / "lost")
    with pytest.raises(
        LaunchError, match=r"is gone or damaged, and .*/hf, where they came from, is not there; put one of the two back"
    ):
        again()
    (tmp_path / "away").rename(source)
    os.utime(source / "config.json")  # another time, the same content
    found = again()
    assert (found.digest, len(proofs)) == (start.digest, 2)
    assert find_weights(found, bases=bases) == Path(found.weights or "")
    (tmp_path / "runs").mkdir()
    bases.rename(tmp_path / "runs" / ".bases")
    assert find_weights(found, bases=bases_in(tmp_path / "runs")) is not None  # moved with the runs
    tensors = TINY.tensors()
    tensors["model.norm.weight"][0] += 1
    write_weights(source, tensors)
    with pytest.raises(LaunchError, match=r"has changed since: its digest is \w{12}, and the run's weights had"):
        again()


def lora_run(root: Path, start: StartRecord) -> Path:
    """Write a run's checkpoint of one adapter on imported weights."""
    return adapter_checkpoint(
        root / "runs" / "r" / "checkpoints" / "step-00000003",
        base=Path(start.weights or ""),
        extensions=record(LORA),
        start=start,
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_export_names_the_base_and_no_other_path(
    tmp_path: Path, proofs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TINY.write(tmp_path / "models" / "tiny")
    start = start_of(source, tmp_path / "runs").model_copy(update={"name": "models/tiny"})
    ck = lora_run(tmp_path, start)
    base = {"name": "models/tiny", "digest": start.digest}

    assert export_hf(ck, tmp_path / "merged", merge=True)["base"] == base
    assert export_mixture(ck, tmp_path / "mixture")["base"] == base
    assert json.loads((tmp_path / "mixture" / "config.json").read_text())["llama_scale"]["base"] == base
    assert export_peft(ck, tmp_path / "peft")["base"] == base
    for config in (tmp_path / "peft", tmp_path / "mixture" / "adapters" / "a0"):
        assert json.loads((config / "adapter_config.json").read_text())["base_model_name_or_path"] == "models/tiny"
    for file in [*(tmp_path / "mixture").rglob("config.json"), *(tmp_path / "peft").glob("adapter_config.json")]:
        assert str(tmp_path) not in file.read_text()
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft", dtype=torch.float32)
    assert torch.equal(model.base_model.model.lm_head.weight, TINY.tensors()["lm_head.weight"])

    manifest = load_manifest(Path(start.weights or ""))
    full = _write(tmp_path / "full", Path(start.weights or ""), manifest.model_copy(update={"started_from": start}))
    assert export_hf(full, tmp_path / "trained")["base"] == base


def _write(folder: Path, source: Path, manifest: Manifest) -> Path:
    """Copy a checkpoint under another manifest."""
    folder.mkdir()
    for shard in manifest.shards:
        (folder / shard.file).write_bytes((source / shard.file).read_bytes())
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_an_export_imports_again_what_is_gone(tmp_path: Path, proofs: list[Path]) -> None:
    source = TINY.write(tmp_path / "hf")
    start = start_of(source, tmp_path / "runs")
    ck = lora_run(tmp_path, start)
    copy = Path(start.weights or "")
    copy.rename(tmp_path / "lost")
    export_hf(ck, tmp_path / "first", merge=True)
    assert find_imported(copy.parent, copy.name) is not None

    copy.rename(tmp_path / "lost too")
    source.rename(tmp_path / "moved")
    with pytest.raises(ConvertError, match=r"and neither is .*/hf, from which it came; give that folder with --base"):
        export_hf(ck, tmp_path / "second", merge=True)
    export_hf(ck, tmp_path / "second", merge=True, base=tmp_path / "moved")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Tiny(config=TINY.config, seed=9).write(tmp_path / "other")
    with pytest.raises(ConvertError, match=r"other is not the base of checkpoint"):
        export_hf(ck, tmp_path / "third", merge=True, base=other)


def test_a_run_on_adapters_starts_from_their_base(tmp_path: Path, proofs: list[Path]) -> None:
    start = start_of(TINY.write(tmp_path / "hf"), tmp_path / "runs")
    ck = lora_run(tmp_path, start)
    found = describe_start(spec_of(ck))
    assert found == start.model_copy(update={"adapters": str(ck)})


def test_a_key_is_free_when_its_holder_is_done(tmp_path: Path) -> None:
    with locked(tmp_path, "abc"):
        pass
    with locked(tmp_path, "abc", wait=False):
        pass
