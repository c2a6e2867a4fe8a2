"""A SentencePiece model as its file holds it, as far as encoding depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.errors import DataError

SPACE = "\u2581"
"""How a piece spells a space."""
UNIGRAM, BPE = 1, 2
"""Kinds of models, as the file numbers them."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces, as the file numbers them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece: its text, its score (log likelihood, or rank of its merge), and its type."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """What a model's file holds.

    Args:
        file: The file.
        kind: ``UNIGRAM``, ``BPE`` or another.
        pieces: In order of their ids.
        rules: How text is normalized: its ``NormalizerSpec``.
        suffix: Whether spaces stand behind words.
    """

    file: Path
    kind: int
    pieces: tuple[Piece, ...]
    rules: Any
    suffix: bool

    def texts(self, *types: int) -> list[str]:
        """Return the texts of the pieces of some types, in order of their ids."""
        return [piece.text for piece in self.pieces if piece.type in types]


def load_sentencepiece(file: Path) -> Any:
    """Return the ``SentencePieceProcessor`` of a model.

    Raises:
        DataError: The file is not a SentencePiece model, or the library is not installed.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise DataError("sentencepiece is not installed: pip install 'llama-scale[train]'") from error
    try:
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise DataError(f"the tokenizer {file} is no SentencePiece model, or is damaged") from error


def read_model(file: Path) -> SentencePieceModel:
    """Read a model's file; ``load_sentencepiece`` says whether it is one."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    return SentencePieceModel(
        file=file,
        kind=proto.trainer_spec.model_type,
        pieces=tuple(Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces),
        rules=proto.normalizer_spec,
        suffix=proto.trainer_spec.treat_whitespace_as_suffix,
    )
