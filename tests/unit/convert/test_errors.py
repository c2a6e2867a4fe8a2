"""Bad input is refused with its name, the rule and what to do, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.folders import find_checkpoint, new_folder
from llama_scale.convert.hf_config import make_hf_config
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.reshard import reshard
from llama_scale.convert.shards import Layout
from llama_scale.convert.verify import verify
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError
from llama_scale.layout.parameters import EMBEDDING
from tests.unit.convert.tiny import Tiny, write_weights


def refuse(tmp_path: Path, source: Path, message: str, *, layout: Layout | None = None, **options: object) -> None:
    """The import fails with this text and leaves no trace beside its source."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConvertError, match=message) as caught:
        import_hf(source, tmp_path / "ck", layout=layout or Layout(), **options)
    assert caught.value.exit_code == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_missing_folder_and_files(tmp_path):
    refuse(tmp_path, tmp_path / "none", r"none cannot be converted: .*none is not there")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path, tmp_path / "empty", r"holds no config\.json")
    (tmp_path / "empty" / "config.json").write_text(json.dumps(Tiny().settings()))
    refuse(tmp_path, tmp_path / "empty", r"has neither model\.safetensors nor model\.safetensors\.index\.json")


def test_unknown_model_type(tmp_path):
    source = Tiny(config={"model_type": "mamba"}).write(tmp_path / "hf")
    refuse(tmp_path, source, r"model_type is 'mamba'; only 'llama' \(LlamaForCausalLM\) is supported")


def test_kv_heads_that_do_not_divide(tmp_path):
    source = Tiny(config={"num_key_value_heads": 5}).write(tmp_path / "hf")
    refuse(tmp_path, source, r"num_key_value_heads=5 does not divide num_attention_heads=12")


def test_pickled_weights_are_not_loaded(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    refuse(tmp_path, source, r"only pickled weights \(pytorch_model\.bin\), which run code .*save_pretrained")


def test_missing_tensor(tmp_path):
    tensors = Tiny().tensors()
    del tensors["model.layers.3.mlp.up_proj.weight"]
    source = Tiny().write(tmp_path / "hf", tensors=tensors)
    refuse(tmp_path, source, r"has no tensor 'model\.layers\.3\.mlp\.up_proj\.weight'; the folder is incomplete")


def test_missing_output_layer_of_an_untied_model(tmp_path):
    tensors = Tiny().tensors()
    del tensors["lm_head.weight"]
    source = Tiny().write(tmp_path / "hf", tensors=tensors)
    refuse(tmp_path, source, r"has no tensor 'lm_head\.weight'; config\.json says tie_word_embeddings=false; set it")


def test_extra_tensor(tmp_path):
    tensors = Tiny().tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(72)}
    source = Tiny().write(tmp_path / "hf", tensors=tensors)
    refuse(tmp_path, source, r"has the tensor 'model\.layers\.0\.self_attn\.q_proj\.bias', which a LLaMA")


def test_wrong_shape(tmp_path):
    tensors = Tiny().tensors() | {"model.norm.weight": torch.zeros(25)}
    source = Tiny().write(tmp_path / "hf", tensors=tensors)
    refuse(tmp_path, source, r"model\.norm\.weight has the shape \[25\], config\.json asks for \[24\]")


def test_buffers_of_old_files_are_left_out_and_reported(tmp_path):
    tensors = Tiny().tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}
    source = Tiny().write(tmp_path / "hf", tensors=tensors)
    import_hf(source, tmp_path / "ck", layout=Layout())
    report = json.loads((tmp_path / "ck" / "report.json").read_text())
    assert report["ignored"] == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "buffer of older transformers, computed anew from rope_theta"
    }


def test_tied_model_with_an_output_layer(tmp_path):
    tied = Tiny(config={"tie_word_embeddings": True})
    tensors = tied.tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    import_hf(tied.write(tmp_path / "same", tensors=tensors), tmp_path / "ck0", layout=Layout())
    report = json.loads((tmp_path / "ck0" / "report.json").read_text())
    assert report["ignored"] == {"lm_head.weight": "equal to model.embed_tokens.weight, which config.json ties it to"}
    tensors["lm_head.weight"][3, 3] += 1
    source = tied.write(tmp_path / "hf", tensors=tensors)
    refuse(tmp_path, source, r"tie_word_embeddings=true, but lm_head\.weight differs from model\.embed_tokens\.weight")


def test_truncated_file(tmp_path):
    source = Tiny(files=3).write(tmp_path / "hf")
    file = source / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refuse(tmp_path, source, r"model-00002-of-00003\.safetensors is damaged.* it is truncated")
    file.unlink()
    refuse(tmp_path, source, r"model-00002-of-00003\.safetensors is missing; download the folder again")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refuse(tmp_path, source, r"model-00002-of-00003\.safetensors is damaged")


def test_damaged_index(tmp_path):
    source = Tiny(files=2).write(tmp_path / "hf")
    index = source / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(data))
    refuse(tmp_path, source, r"says that model-00001-of-00002\.safetensors holds 'extra\.weight', but it does not")
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refuse(tmp_path, source, r"names the file '\.\./model\.safetensors'; only files beside the index are read")
    index.write_text("[]")
    refuse(tmp_path, source, r"is no index of safetensors")


def test_ambiguous_weights(tmp_path):
    tiny = Tiny(files=2)
    source = tiny.write(tmp_path / "hf")
    write_weights(source, tiny.tensors())
    refuse(tmp_path, source, r"holds both model\.safetensors and model\.safetensors\.index\.json")


def test_a_tensor_in_two_files(tmp_path):
    tiny = Tiny(files=2)
    source = tiny.write(tmp_path / "hf")
    first = source / "model-00001-of-00002.safetensors"
    first.write_bytes((source / "model-00002-of-00002.safetensors").read_bytes())
    index = source / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    held = {name: file for name, file in names.items() if file.startswith("model-00002")}
    twice = next(iter(held))
    index.write_text(json.dumps({"weight_map": held | {"z": first.name} | {twice: first.name}}))
    refuse(tmp_path, source, r"says that model-00001-of-00002\.safetensors holds 'z'")
    index.write_text(json.dumps({"weight_map": held | {twice: first.name}}))
    refuse(tmp_path, source, r"is stored twice in .*hf: in model-0000\d-of-00002\.safetensors and")


def test_formats_that_need_a_choice(tmp_path):
    source = Tiny(dtype=torch.float16).write(tmp_path / "half")
    refuse(tmp_path, source, r"holds float16; choose --dtype fp32 \(exact\) or --dtype bf16 \(rounds\)")
    tensors = Tiny().tensors()
    mixed = tensors | {"model.norm.weight": tensors["model.norm.weight"].bfloat16()}
    refuse(tmp_path, Tiny().write(tmp_path / "mixed", tensors=mixed), r"holds bfloat16 and float32; choose --dtype")
    quantized = tensors | {"model.norm.weight": torch.zeros(24, dtype=torch.int8)}
    refuse(tmp_path, Tiny().write(tmp_path / "int", tensors=quantized), r"holds int8: a quantized model")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp_size=5), r"--tensor 5 does not divide num_heads=12, .* use 1 or 2 or 3 or 4 or 6 or 12"),
        (
            Layout(pp_size=4),
            r"pipeline=4 does not divide num_layers=6; use pipeline 1, 2, 3, 6, or give --stage",
        ),
        (Layout(tp_size=0), r"--tensor 0 is below 1"),
        (Layout(pp_size=2, stage_layers=(3, 4)), r"stage_layers=\[3, 4\] sums to 7, but the model has num_layers=6"),
    ],
)
def test_layouts_that_do_not_divide(tmp_path, layout, message):
    refuse(tmp_path, Tiny().write(tmp_path / "hf"), message, layout=layout)


def test_memory_limit(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    refuse(tmp_path, source, r"may be needed for .*, --max-ram allows 0\.10", max_ram_bytes=100_000_000)


def test_existing_targets_are_not_touched(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / "precious").write_text("x")
    refuse(tmp_path, source, r"ck exists and is not empty; give a new folder")
    assert (tmp_path / "ck" / "precious").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConvertError, match="file exists and is no folder"):
        import_hf(source, tmp_path / "file", layout=Layout())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConvertError, match="cannot write to"):
        import_hf(source, tmp_path / "locked" / "ck", layout=Layout())


def test_new_folder_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConvertError, match=r"cannot write to .*file: "), new_folder(tmp_path / "file" / "ck"):
        pass


def test_parents_of_a_failed_import_are_removed_and_others_are_not(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    (tmp_path / "there").mkdir()

    def proof(folder: Path) -> dict[str, object]:
        assert folder.is_dir()
        raise ConvertError("it differs")

    with pytest.raises(ConvertError, match="it differs"):
        import_hf(source, tmp_path / "there" / "new" / "newer" / "ck", layout=Layout(), proof=proof)
    assert sorted(p.name for p in tmp_path.rglob("*") if source not in p.parents) == ["hf", "there"]
    import_hf(source, tmp_path / "there" / "new" / "ck", layout=Layout())
    assert (tmp_path / "there" / "new" / "ck" / "manifest.json").is_file()


def test_damaged_checkpoint_is_named(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout(tp_size=2))
    shard = tmp_path / "ck" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    for act in (export_hf, lambda s, t: reshard(s, t, layout=Layout())):
        with pytest.raises(ConvertError, match=r"shard-00001\.safetensors: its SHA-256 is not the one in its manifest"):
            act(tmp_path / "ck", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_sources_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ConvertError, match="none does not exist; give the path of a run folder"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(ConvertError, match="is neither a run folder nor a checkpoint"):
        find_checkpoint(tmp_path)
    source = Tiny().write(tmp_path / "hf")
    with pytest.raises(ConvertError, match="is a Hugging Face folder, no checkpoint"):
        find_checkpoint(source)
    (tmp_path / "run" / "checkpoints" / "step-00000001.tmp-x").mkdir(parents=True)
    with pytest.raises(ConvertError, match="has no complete checkpoint yet"):
        find_checkpoint(tmp_path / "run")
    import_hf(source, tmp_path / "run" / "checkpoints" / "step-00000007", layout=Layout())
    assert find_checkpoint(tmp_path / "run").name == "step-00000007"


def test_models_that_transformers_cannot_hold(tmp_path):
    refused = Tiny(config={"hidden_size": 26}).write(tmp_path / "refused")
    refuse(tmp_path, refused, r"num_attention_heads=12 does not divide hidden_size=26, and transformers refuses such")
    manifest = import_hf(Tiny().write(tmp_path / "hf"), tmp_path / "ck", layout=Layout())
    with pytest.raises(ConvertError, match="hidden_size=26 is not a multiple of num_heads=12: transformers refuses"):
        make_hf_config(manifest.shape.model_copy(update={"hidden_size": 26}), dtype="float32")


def test_a_checkpoint_of_several_element_types_has_no_one_type(tmp_path):
    manifest = import_hf(Tiny().write(tmp_path / "hf"), tmp_path / "ck", layout=Layout())
    weights = Weights(tmp_path / "ck")
    tensors = manifest.tensors["model"]
    one = tensors[EMBEDDING].model_copy(update={"dtype": "bfloat16"})
    weights.manifest = manifest.model_copy(update={"tensors": {"model": {**tensors, EMBEDDING: one}}})
    with pytest.raises(ConvertError, match="holds weights of the types bfloat16, float32; choose --dtype"):
        _ = weights.dtype


def test_verify_refuses_another_model(tmp_path):
    source = Tiny().write(tmp_path / "hf")
    import_hf(source, tmp_path / "ck", layout=Layout())
    other = Tiny(config={"rope_theta": 500000.0}).write(tmp_path / "other")
    with pytest.raises(ConvertError, match=r"rope_theta is 500000\.0 there and 10000\.0 here"):
        verify(tmp_path / "ck", other)
    with pytest.raises(ConvertError, match="--tensor 5 does not divide"):
        verify(tmp_path / "ck", source, layout=Layout(tp_size=5))


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    source = Tiny().write(tmp_path / "hf")
    import_hf(source, tmp_path / "whole", layout=Layout())
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: _Full(real(path)))
    needed = r"[0-9,]+ bytes are needed in .*, 4,096 are free; free some space"
    refuse(tmp_path, source, needed)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConvertError, match=needed):
        export_hf(tmp_path / "whole", tmp_path / "back")
    with pytest.raises(ConvertError, match=needed):
        reshard(tmp_path / "whole", tmp_path / "back", layout=Layout(pp_size=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == before


class _Full:
    """A file system's numbers with one free block of 4096 bytes."""

    def __init__(self, real: os.statvfs_result) -> None:
        self.f_frsize, self.f_blocks, self.f_bfree, self.f_bavail = 4096, real.f_blocks, 1, 1
