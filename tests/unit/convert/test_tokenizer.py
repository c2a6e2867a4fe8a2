"""SentencePiece models become tokenizer.json files with equal ids; Hugging Face tokenizers are copied."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.folders import find_checkpoint
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.origin import origin_of
from llama_scale.convert.shards import Layout
from llama_scale.convert.tokenizer import write_tokenizer
from llama_scale.errors import ConvertError
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec
from tests.task_tokenizer import write_tokenizer as write_small_tokenizer
from tests.unit.convert.tiny import Tiny

# Without control symbols: transformers reads <s> in a text as the symbol, SentencePiece as three characters.
CORPUS = [
    Path(json.__file__).read_text(),
    Path(json.decoder.__file__).read_text(),
    Path(__file__).with_name("tiny.py").read_text(),
]
TEXTS = [
    *(line for text in CORPUS for line in text.splitlines()),
    *CORPUS,
    "Gr\u00fc\u00dfe aus K\u00f6ln; \u4f60\u597d \U0001f600!\n\n  two  spaces\t1234567890 ",
]
OPTIONS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "bpe-nfkc": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
    "bpe-digits-symbols": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "split_digits": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<sep>", "\n"],
    },
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
}


def train(folder: Path, **options: Any) -> Path:
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spm"),
        vocab_size=500,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return folder / "spm.model"


@pytest.mark.parametrize("name", OPTIONS)
def test_converted_tokenizer_gives_the_same_ids_and_texts(tmp_path, name):
    from transformers import AutoTokenizer

    model = train(tmp_path, **OPTIONS[name])
    original = SentencePieceProcessor(model_file=str(model))
    (tmp_path / "hf").mkdir()
    ids = write_tokenizer(model, tmp_path / "hf", vocab_size=512)
    assert ids == {"bos": 1, "eos": 2, "pad": None}
    made = AutoTokenizer.from_pretrained(tmp_path / "hf")
    # Unigram: of two equally likely ways to cut a run such as === the libraries take different ones.
    texts = [t for t in TEXTS if name != "unigram" or not re.search(r"([^ \w])\1", t)]
    assert len(texts) > 50
    for text in texts:
        wanted = original.encode(text)
        assert made(text)["input_ids"] == wanted, text
        assert made.decode(wanted) == original.decode(wanted), text
    assert (made.bos_token, made.eos_token, made.unk_token) == ("<s>", "</s>", "<unk>")


def test_models_that_cannot_be_converted_are_refused(tmp_path):
    (tmp_path / "hf").mkdir()
    word = train(tmp_path, model_type="word")
    with pytest.raises(ConvertError, match="is neither a BPE nor a Unigram SentencePiece model"):
        write_tokenizer(word, tmp_path / "hf", vocab_size=4096)
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(ConvertError, match="is no SentencePiece model"):
        write_tokenizer(tmp_path / "broken.model", tmp_path / "hf", vocab_size=512)
    assert list((tmp_path / "hf").iterdir()) == []


def test_tokenizers_that_do_not_fit_the_model_are_refused(tmp_path):
    (tmp_path / "hf").mkdir()
    model = train(tmp_path, **OPTIONS["bpe"])
    with pytest.raises(ConvertError, match=r"spm\.model has the id 499 \(.*\), but the model's vocab_size is 61"):
        write_tokenizer(model, tmp_path / "hf", vocab_size=61)
    folder = tmp_path / "tok"
    folder.mkdir()
    with pytest.raises(ConvertError, match=r"holds no tokenizer\.json and no tokenizer\.model"):
        write_tokenizer(folder, tmp_path / "hf", vocab_size=61)
    definition = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 61, "content": "<big>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConvertError, match=r"has the id 61 \('<big>'\), but the model's vocab_size is 61"):
        write_tokenizer(folder, tmp_path / "hf", vocab_size=61)


def make_run(tmp_path: Path, **sections: Any) -> Path:
    """A run folder with one checkpoint, as far as an export looks at it."""
    hf = Tiny(config={"vocab_size": 512}).write(tmp_path / "source")
    run = tmp_path / "run"
    manifest = import_hf(hf, run / "checkpoints" / "step-00000003", layout=Layout())
    for kept in (run / "checkpoints" / "step-00000003" / "hf").iterdir():
        kept.unlink()
    model = {"kind": "inline", **manifest.shape.model_dump(), **sections.pop("model", {})}
    spec = RunSpec.model_validate(
        {
            "version": 1,
            "name": "tiny",
            "model": model,
            "data": {"kind": "indexed", "blend": ({"path": "/nowhere"},), "seq_length": 16},
            "train": {"steps": 3},
            "batch": {"global": 1, "micro": 1, "accumulation": 1},
            "engine": {"kind": "megatron"},
            **sections,
        }
    )
    (run / "spec.yaml").write_text(dump_spec(spec))
    return run


def test_run_brings_its_tokenizer_and_its_ids(tmp_path):
    model = train(tmp_path, **OPTIONS["bpe"])
    run = make_run(tmp_path, tokenizer={"kind": "sentencepiece", "path": str(model)})
    report = export_hf(find_checkpoint(run), tmp_path / "out")
    assert report["tokenizer"] == str(model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, None)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "do_sample": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()
    model.unlink()
    with pytest.raises(ConvertError, match=r"the run's tokenizer .* does not exist any more"):
        export_hf(find_checkpoint(run), tmp_path / "again")
    with pytest.raises(ConvertError, match=r"--tokenizer .*x does not exist"):
        export_hf(find_checkpoint(run), tmp_path / "again", tokenizer=tmp_path / "x")


def test_warm_started_run_takes_the_tokenizer_of_its_start(tmp_path):
    source = Tiny(config={"vocab_size": 512}).write(tmp_path / "start-hf")
    write_small_tokenizer(source)
    import_hf(source, tmp_path / "start", layout=Layout())
    run = make_run(tmp_path, model={"init_from": str(tmp_path / "start")})
    assert origin_of(find_checkpoint(run)).tokenizer == tmp_path / "start" / "hf"


def test_run_without_tokenizer_or_with_a_damaged_spec(tmp_path):
    run = make_run(tmp_path)
    assert origin_of(find_checkpoint(run)).tokenizer is None
    (run / "spec.yaml").write_text("version: 2\n")
    with pytest.raises(ConvertError, match=r"what came with the model is not known, because .*spec\.yaml cannot be"):
        origin_of(find_checkpoint(run))
