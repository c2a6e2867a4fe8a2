"""The token that ends an assistant's turn by a tokenizer's chat template."""

from __future__ import annotations

from pathlib import Path

from llama_scale.convert.folders import read_json
from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError

_QUESTION, _ANSWER = "V1", "W2"


def turn_end(path: Path) -> int | None:
    """Return the id of the control token that a chat template writes behind an answer, which training counts in.

    Words that a template writes there are no such token: they may stand inside an answer too.

    Args:
        path: SentencePiece model, or folder with a Hugging Face tokenizer.

    Returns:
        None if there is no template, it refuses a plain conversation, or its turns end with no control token.
    """
    tokenizer = TaskTokenizer(path)
    conversation = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.chat(conversation, add_generation_prompt=False).rstrip()
    except DataError:
        return None
    _, found, end = text.rpartition(_ANSWER)
    if not found or not end:
        return None
    last = tokenizer.encode(text)[-1]
    return last if last in _control_ids(path) else None


def _control_ids(path: Path) -> set[int]:
    """Return the ids that no plain text is cut into."""
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        path /= "tokenizer.model"
    if path.is_dir():
        return {token["id"] for token in (read_json(path / "tokenizer.json") or {}).get("added_tokens") or ()}
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto()
    proto.ParseFromString(path.read_bytes())
    kinds = (ModelProto.SentencePiece.CONTROL, ModelProto.SentencePiece.USER_DEFINED)
    return {number for number, piece in enumerate(proto.pieces) if piece.type in kinds}
