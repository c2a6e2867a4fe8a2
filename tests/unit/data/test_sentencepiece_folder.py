"""What lies beside a SentencePiece model counts, and models that cannot be converted are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoTokenizer

from llama_scale.data.tokenizer import load_tokenizer
from llama_scale.errors import DataError
from tests.unit.data.conftest import MakeModel
from tests.unit.data.sentencepiece_models import ALL, CHATML, check_conversation, export


def test_tokens_that_the_files_beside_a_model_add_are_in_the_export(model: MakeModel, tmp_path: Path) -> None:
    size = SentencePieceProcessor(model_file=str(model(ALL[6]))).vocab_size()
    added = {str(size): {"content": "<tool>"}, str(size + 1): {"content": "<end>", "special": True, "rstrip": True}}

    ours, theirs = export(
        model(ALL[6]), tmp_path, chat_template=CHATML, added_tokens_decoder=added, eos_token="<end>", pad_token=None
    )

    for turns in (["a<tool>", "b <tool> c<end>  d"], ["<end> "], ["x"]):
        check_conversation((ours, theirs), turns, prompt=True)
    judge = AutoTokenizer.from_pretrained(ours.path.parent)  # transformers' own conversion
    assert ours.encode("x<end>  y") == judge("x<end>  y", add_special_tokens=False)["input_ids"]
    assert (ours.encode("a<tool><end>")[-2:], ours.eos_id) == ([size, size + 1], size + 1)
    assert (ours.vocab_size, ours.eos_id) == (max(theirs.get_vocab().values()) + 1, theirs.eos_token_id)


def edited(file: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    change(proto)
    (folder / "edited.model").write_bytes(proto.SerializeToString())
    return folder / "edited.model"


def _score(proto: Any) -> None:
    proto.pieces[-200].score = proto.pieces[-201].score
    proto.pieces[-200].piece, proto.pieces[-201].piece = "xy", "yx"


def _unused(proto: Any) -> None:
    proto.pieces[-1].type = 5


def _table(proto: Any) -> None:
    proto.normalizer_spec.name = "user_defined"


def _suffix(proto: Any) -> None:
    proto.trainer_spec.treat_whitespace_as_suffix = True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_score, r"'(xyx|yxy)' gives \[.*\] there and \[.*\] in tokenizer\.json"),
        (_unused, "its piece '.*' is marked as unused"),
        (_table, r"it normalizes text by a table of its own \(user_defined\)"),
        (_suffix, r"it writes the space behind words \(treat_whitespace_as_suffix\)"),
    ],
)
def test_models_that_the_library_cannot_express_are_refused_with_the_reason(
    model: MakeModel, tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    file = edited(model(ALL[2]), tmp_path, change)

    with pytest.raises(DataError, match=rf"edited\.model cannot be converted with equal ids: {reason}.*kind: hf"):
        load_tokenizer(file)


def test_files_beside_a_model_that_contradict_it_are_named(model: MakeModel, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model(ALL[0]).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 9999}')
    with pytest.raises(DataError, match=r"say that '<tool>' has the id 9999, and it would get \d+: .*without gaps"):
        load_tokenizer(file)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json holds list, not an object; it lies beside"):
        load_tokenizer(file)
