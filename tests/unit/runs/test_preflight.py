from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from llama_scale.checkpoint.manifest import StartRecord
from llama_scale.errors import LaunchError
from llama_scale.runs.preflight import check_inputs
from llama_scale.spec.load import load_spec
from llama_scale.spec.run import RunSpec
from tests.live_runs import write_spec


def _spec(folder: Path, *overrides: str) -> RunSpec:
    return load_spec(write_spec(folder), overrides=overrides)


def _tokenizer(folder: Path, size: int) -> Path:
    import tokenizers
    from tokenizers.models import WordLevel

    folder.mkdir()
    words = {"[UNK]": 0} | {f"w{n}": n for n in range(1, size)}
    tokenizers.Tokenizer(WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder


def test_good_inputs_pass(tmp_path: Path) -> None:
    path = _tokenizer(tmp_path / "tokenizer", 101)
    check_inputs(_spec(tmp_path, f"tokenizer={{kind: hf, path: {path}}}"))


def test_missing_token_file_is_named(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(LaunchError, match=rf"{tmp_path}/tokens.bin is missing") as caught:
        check_inputs(spec)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx"])
def test_truncated_token_file_is_named(tmp_path: Path, name: str) -> None:
    spec = _spec(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LaunchError, match=rf"{path} has \d+ bytes, but its (index|header)"):
        check_inputs(spec)


def test_too_few_tokens_for_one_sample(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"tokens.bin holds 2400 tokens, and one sample of data.seq_length=2400"):
        check_inputs(_spec(tmp_path, "data.seq_length=2400", "model.max_position_embeddings=4096"))


def test_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    spec = _spec(tmp_path, f"tokenizer={{kind: hf, path: {path}}}")  # not there yet, so that the spec is good
    _tokenizer(path, 102)
    with pytest.raises(
        LaunchError, match=rf"tokenizer {path} has 102 tokens, and the model knows model.vocab_size=101"
    ):
        check_inputs(spec)


def test_tokenizers_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(LaunchError, match=r"holds no tokenizer.json; name a Hugging Face tokenizer folder"):
        check_inputs(_spec(tmp_path, f"tokenizer={{kind: hf, path: {tmp_path}/t}}"))
    (tmp_path / "t" / "tokenizer.json").write_text("{")
    with pytest.raises(LaunchError, match=r"tokenizer.json is no tokenizer, or is damaged"):
        check_inputs(_spec(tmp_path, f"tokenizer={{kind: hf, path: {tmp_path}/t}}"))
    with pytest.raises(LaunchError, match=r"x.model does not exist; `llama-scale tokenizer train` writes one"):
        check_inputs(_spec(tmp_path, f"tokenizer={{kind: sentencepiece, path: {tmp_path}/x.model}}"))
    (tmp_path / "x.model").write_bytes(b"no protobuf")
    with pytest.raises(LaunchError, match=r"x.model is no SentencePiece model, or is damaged"):
        check_inputs(_spec(tmp_path, f"tokenizer={{kind: sentencepiece, path: {tmp_path}/x.model}}"))


def test_a_sentencepiece_model_is_converted_before_a_run_begins(tmp_path: Path) -> None:
    words, pieces = tmp_path / "words", tmp_path / "pieces"
    for prefix, kind in ((words, "word"), (pieces, "bpe")):
        SentencePieceTrainer.train(
            sentence_iterator=iter(["aa ab ba bb abab"] * 9),
            model_prefix=str(prefix),
            model_type=kind,
            vocab_size=12,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    sections = {path: f"tokenizer={{kind: sentencepiece, path: {path}.model}}" for path in (words, pieces)}
    with pytest.raises(LaunchError, match=r"words\.model cannot be converted with equal ids: it is neither a BPE nor"):
        check_inputs(_spec(tmp_path, sections[words]))
    check_inputs(_spec(tmp_path, sections[words]), warm_start=False)  # a run of 0.1 goes on
    check_inputs(_spec(tmp_path, sections[pieces]))
    added = {str(100 + n): {"content": f"<{n}>"} for n in range(2)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(LaunchError, match=r"say that '<0>' has the id 100, and it would get \d+"):
        check_inputs(_spec(tmp_path, sections[pieces]))


def test_warm_start_needs_a_complete_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    spec = _spec(tmp_path, f"model.init_from={tmp_path}/step-00000001")
    with pytest.raises(LaunchError, match=r"model.init_from: .* is no complete checkpoint: it has no manifest.json"):
        check_inputs(spec)
    check_inputs(spec, warm_start=False)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    spec = _spec(tmp_path, f"model.init_from={tmp_path}/none", f"tokenizer={{kind: hf, path: {tmp_path}/none}}")
    (tmp_path / "tokens.idx").unlink()
    with pytest.raises(LaunchError) as caught:
        check_inputs(spec)
    lines = str(caught.value).splitlines()
    assert lines[0] == "tiny cannot start:"
    assert len(lines) == 4


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(LaunchError, match=r"the workers need torch, not installed here: pip install"):
        check_inputs(_spec(tmp_path))


def test_packages_of_an_image_are_not_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    image = "launcher={kind: slurm, container: {kind: pyxis, image: /x.sqsh}}"
    check_inputs(load_spec(write_spec(tmp_path), overrides=[image]))
    with pytest.raises(LaunchError, match=r"the workers need torch, megatron, safetensors, numpy, not installed here"):
        check_inputs(load_spec(write_spec(tmp_path), overrides=["launcher={kind: slurm}"]))


def test_a_folder_of_weights_is_looked_at_again(tmp_path: Path) -> None:
    numbers = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 101, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **numbers}))
    (folder / "model.safetensors").write_bytes(b"x")
    spec = _spec(tmp_path, f"model.init_from={folder}")
    check_inputs(spec)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LaunchError, match=r"model.init_from: .*hf holds no weights"):
        check_inputs(spec)
    known = StartRecord(kind="folder", name="hf", path=str(folder), digest="0" * 64)
    check_inputs(spec, start=known)  # imported already; `resume` looks whether the copy is there
    with pytest.raises(LaunchError, match=r"model.init_from: .*hf holds no weights"):
        check_inputs(spec, start=known.model_copy(update={"path": "/another"}))


def test_weights_in_an_image_are_not_looked_for_here(tmp_path: Path) -> None:
    image = "launcher={kind: slurm, container: {kind: pyxis, image: /x.sqsh}}"
    check_inputs(load_spec(write_spec(tmp_path), overrides=[image, "model.init_from=/in/the/image"]))
