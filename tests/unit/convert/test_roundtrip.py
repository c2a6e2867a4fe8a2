"""Hugging Face -> checkpoint -> Hugging Face is bit-equal for every layout, and resharding changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_scale.checkpoint.manifest import load_manifest, verify_files
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.checkpoint.writer import ShardWriter, build_manifest, commit
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.reshard import reshard
from llama_scale.convert.shards import Layout
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import iter_parameters
from llama_scale.spec.hf_config import read_hf_config
from tests.unit.convert.tiny import Tiny

VARIANTS = {
    "mha": Tiny(),
    "gqa-tied-bf16-sharded": Tiny(
        config={"num_attention_heads": 24, "tie_word_embeddings": True}, dtype=torch.bfloat16, files=3
    ),
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(str(file))
    return found


def assert_equal_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tp_size", [1, 2, 3, 4])
@pytest.mark.parametrize("pp_size", [1, 2, 3])
def test_roundtrip_is_bit_equal(tmp_path, variant, tp_size, pp_size):
    tiny = VARIANTS[variant]
    source = tiny.write(tmp_path / "hf")
    layout = Layout(tp_size=tp_size, pp_size=pp_size, vocab_pad_multiple=16)
    manifest = import_hf(source, tmp_path / "ck", layout=layout)
    assert len(manifest.shards) == tp_size * pp_size
    verify_files(tmp_path / "ck")
    report = export_hf(tmp_path / "ck", tmp_path / "out", shard_bytes=20_000)
    assert_equal_weights(weights(tmp_path / "out"), tiny.tensors())
    assert read_hf_config(tmp_path / "out") == read_hf_config(source)
    padded = -(-61 // (16 * tp_size)) * 16 * tp_size
    assert report["padding_rows_in_memory"] == padded - 61


def test_digest_does_not_depend_on_the_layout(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    digests = {
        import_hf(
            source, tmp_path / f"ck{tp}{pp}{vp}", layout=Layout(tp_size=tp, pp_size=pp, vp_size=vp)
        ).parameter_digest
        for tp, pp, vp in ((1, 1, 1), (2, 3, 1), (4, 1, 1), (1, 3, 2))
    }
    assert len(digests) == 1


def test_uneven_stages_are_recorded(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    manifest = import_hf(source, tmp_path / "ck", layout=Layout(pp_size=2, stage_layers=(4, 2)))
    assert manifest.topology.stages == (((0, 1, 2, 3),), ((4, 5),))
    assert manifest.engine == "import"
    assert manifest.step == 0


def test_reports_account_for_every_element(tmp_path):
    tiny = Tiny()
    source = tiny.write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout(tp_size=2, pp_size=2))
    export_hf(tmp_path / "ck", tmp_path / "out")
    elements = sum(t.numel() for t in tiny.tensors().values())
    imported, exported = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("ck", "out"))
    assert imported["counts"]["source_elements"] == imported["counts"]["target_elements"] == elements
    assert exported["counts"]["source_elements"] == exported["counts"]["target_elements"] == elements
    # The same tensors, read from one Hugging Face folder and written to another, have the same SHA-256.
    sources = {name: row["digest"] for name, row in imported["sources"].items()}
    assert sources == {name: row["digest"] for name, row in exported["targets"].items()}
    assert all(digest.startswith("sha256:") for digest in sources.values())


def test_files_are_cut_and_indexed(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout())
    export_hf(tmp_path / "ck", tmp_path / "one")
    export_hf(tmp_path / "ck", tmp_path / "many", shard_bytes=10_000)
    assert [p.name for p in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {p.name for p in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 3
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in Tiny().tensors().values())
    assert all((tmp_path / "many" / file).stat().st_size < 12_000 for file in files)


def test_dtype_converts_by_rounding(tmp_path):
    tiny = Tiny()
    source = tiny.write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout(tp_size=2), dtype="bf16")
    export_hf(tmp_path / "ck", tmp_path / "out", dtype="fp32")
    expected = {name: t.bfloat16().float() for name, t in tiny.tensors().items()}
    assert_equal_weights(weights(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_fp16_is_converted_only_when_told_how(tmp_path):
    tiny = Tiny(dtype=torch.float16)
    source = tiny.write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout(), dtype="fp32")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert_equal_weights(weights(tmp_path / "out"), {name: t.float() for name, t in tiny.tensors().items()})


@pytest.mark.parametrize("scaling_key", ["rope_scaling", "rope_parameters"])
def test_config_keeps_scaling_ids_and_unknown_keys(tmp_path, scaling_key):
    scaling: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    if scaling_key == "rope_parameters":
        scaling["rope_theta"] = 500000.0
    config = {scaling_key: scaling, "rope_theta": 500000.0, "eos_token_id": [2, 7], "attention_dropout": 0.0}
    source = Tiny(config=config).write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout(pp_size=2))
    export_hf(tmp_path / "ck", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert read_hf_config(tmp_path / "out") == read_hf_config(source)
    assert written["rope_scaling"]["factor"] == 32.0
    assert written["eos_token_id"] == [2, 7]
    assert written["attention_dropout"] == 0.0
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2, 7]


def test_tokenizer_files_come_back(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        "added_tokens": [{"id": 2, "content": "<e>", **added}],
    }
    (source / "tokenizer.json").write_text(json.dumps(definition))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<e>", "bos_token": {"__type": "AddedToken", "content": "a"}})
    )
    (source / "chat_template.jinja").write_text("{{ messages }}")
    import_hf(source, tmp_path / "ck", layout=Layout())
    report = export_hf(tmp_path / "ck", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)  # as the origin's config has them
    assert report["tokenizer"] == str(tmp_path / "ck" / "hf")


def test_reshard_keeps_every_tensor(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout(tp_size=3, pp_size=2))
    before = load_manifest(tmp_path / "ck")
    after = reshard(tmp_path / "ck", tmp_path / "new", layout=Layout(tp_size=2, pp_size=3))
    assert after.tensors == before.tensors
    assert after.parameter_digest == before.parameter_digest
    assert len(after.shards) == 6
    assert after.topology.stages == (((0, 1),), ((2, 3),), ((4, 5),))
    export_hf(tmp_path / "new", tmp_path / "out")
    assert_equal_weights(weights(tmp_path / "out"), Tiny().tensors())
    verify_files(tmp_path / "new")


def test_reshard_keeps_optimizer_and_random_states(tmp_path):
    imported = import_hf(Tiny().write(tmp_path / "hf"), tmp_path / "ck", layout=Layout())
    generator = torch.Generator().manual_seed(1)
    writer = ShardWriter(tmp_path / "trained.tmp" / "shard-00000.safetensors")
    writer.path.parent.mkdir()
    tensors = {
        (g, p.name): p.shape for g in ("model", "exp_avg", "exp_avg_sq") for p in iter_parameters(imported.shape)
    }
    tensors["rng", "cpu.rank-00000"] = (16,)
    values = {key: torch.randn(shape, generator=generator) for key, shape in tensors.items()}
    values["rng", "cpu.rank-00000"] = torch.arange(16, dtype=torch.uint8)
    for (group, name), value in values.items():
        shape = tuple(value.shape)
        piece = Piece(group=group, name=name, box=Box.whole(shape), flat_start=None, numel=value.numel())
        writer.add_lazy(piece, global_shape=shape, dtype=value.dtype, load=lambda value=value: value)
    facts = {"engine": "megatron", "topology": {"dp_size": 2}, "shape": imported.shape, "optimizer_step": 4}
    manifest = build_manifest([writer.finish()], step=5, samples=40, rng={"seed": 3}, **facts)
    commit(writer.path.parent, tmp_path / "trained", manifest)
    after = reshard(tmp_path / "trained", tmp_path / "new", layout=Layout(tp_size=4, pp_size=3))
    assert (after.step, after.optimizer_step, after.samples, after.rng) == (5, 4, 40, {"seed": 3})
    assert len(after.shards) == 12
    reader = CheckpointReader(tmp_path / "new", verify="hashes")
    for (group, name), value in values.items():
        assert torch.equal(reader.read(group, name), value), (group, name)
