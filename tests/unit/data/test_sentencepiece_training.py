from __future__ import annotations

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from llama_scale.data.documents import find_source
from llama_scale.data.sentencepiece_training import ModelType, train_sentencepiece
from llama_scale.errors import DataError


def train(text: Path, output: Path, vocab_size: int, model_type: ModelType = "bpe") -> Path:
    return train_sentencepiece(find_source([str(text)]), output, vocab_size=vocab_size, model_type=model_type)


def test_llama_conventions(tokenizer: Path) -> None:
    model = SentencePieceProcessor(model_file=str(tokenizer))

    assert model.vocab_size() == 512
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, -1)
    assert [model.id_to_piece(i) for i in range(3, 259)] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert model.encode("2026", out_type=str) == ["\u2581", "2", "0", "2", "6"]


@pytest.mark.parametrize(
    "words", ["a  b", " leading", "trailing ", "\ttab\n\nlines\r\n", "\uff21 \ufb01 \u4f60 \U0001f600"]
)
def test_text_comes_back_unchanged(tokenizer: Path, words: str) -> None:
    model = SentencePieceProcessor(model_file=str(tokenizer))

    assert model.decode(model.encode(words)) == words


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_same_text_gives_the_same_bytes(text: Path, tmp_path: Path, model_type: ModelType) -> None:
    first = train(text, tmp_path / "a", 400, model_type)
    second = train(text, tmp_path / "deep" / "b.model", 400, model_type)

    assert (first, second) == (tmp_path / "a" / "tokenizer.model", tmp_path / "deep" / "b.model")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_largest_vocabulary_is_named_and_possible(tmp_path: Path, model_type: ModelType) -> None:
    (tmp_path / "a.txt").write_text("hello world\n")

    with pytest.raises(DataError, match=r"--vocab-size 5000 is too large for this text \(1 lines\)") as caught:
        train(tmp_path / "a.txt", tmp_path / "no", 5000, model_type)

    assert not (tmp_path / "no").exists()
    largest = int(str(caught.value).split("largest possible is ")[1].split(":")[0])
    train(tmp_path / "a.txt", tmp_path / "yes", largest, model_type)
    with pytest.raises(DataError, match="too large"):
        train(tmp_path / "a.txt", tmp_path / "no", largest + 1, model_type)


def test_smallest_vocabulary_is_named_and_possible(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello world\n")

    with pytest.raises(DataError, match=r"--vocab-size 20 is too small: 3 special pieces, 256 bytes .* at least 267"):
        train(tmp_path / "a.txt", tmp_path, 20)

    train(tmp_path / "a.txt", tmp_path, 267)


def test_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n  \n")

    with pytest.raises(DataError, match="the input holds no text: every document is empty"):
        train(tmp_path / "a.txt", tmp_path, 300)


def test_fault_in_the_text_is_what_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "hello world"}\nnonsense\n')

    with pytest.raises(DataError, match=r"a.jsonl:2:1: no JSON"):
        train(tmp_path / "a.jsonl", tmp_path, 267)


def test_existing_model_is_kept(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("precious")

    with pytest.raises(DataError, match=r"tokenizer.model exists; token files made with it would no longer fit"):
        train(text, tmp_path, 400)

    assert (tmp_path / "tokenizer.model").read_text() == "precious"


def test_lines_longer_than_sentencepiece_takes_are_cut_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello world " * 20_000)

    model = SentencePieceProcessor(model_file=str(train(tmp_path / "a.txt", tmp_path, 280)))

    assert model.piece_to_id("\u2581hello") != model.unk_id()
