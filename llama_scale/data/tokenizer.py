"""One view of SentencePiece and Hugging Face tokenizers: text in, plain ids out, nothing added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from llama_scale.errors import DataError

Offsets = list[tuple[int, int]]
"""Characters ``[start, end)`` of a text that each token stands for."""


class Encode(Protocol):
    """Turn texts into token ids; no BOS or EOS is added."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """Hold a loaded tokenizer.

    Args:
        kind: As in a spec's ``tokenizer.kind``.
        file: The file that defines it: a SentencePiece model or a tokenizer.json.
        vocab_size: One more than the largest id.
        eos_id: Id that ends a document; None if the tokenizer has none.
        encode: Texts to ids.
        encode_with_offsets: A text to ids and the characters that each stands for.
        decode: Ids to text, special tokens left out.
    """

    kind: Literal["sentencepiece", "hf"]
    file: Path
    vocab_size: int
    eos_id: int | None
    encode: Encode
    encode_with_offsets: Callable[[str], tuple[list[int], Offsets]]
    decode: Callable[[Sequence[int]], str]

    def digest(self) -> str:
        """Return the SHA-256 hex of the defining file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path: A SentencePiece model, a tokenizer.json, or a folder with one of tokenizer.json and tokenizer.model.

    Raises:
        DataError: There is none, it is damaged, or its library is not installed.
    """
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return load_tokenizer(path / name)
        raise DataError(f"--tokenizer {path} holds neither tokenizer.json nor tokenizer.model; name a tokenizer")
    if not path.is_file():
        raise DataError(f"--tokenizer {path} does not exist; `llama-scale tokenizer train` makes one")
    return _load_hf(path) if path.suffix == ".json" else _load_sentencepiece(path)


def _load_sentencepiece(path: Path) -> Tokenizer:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise DataError("sentencepiece is not installed: pip install 'llama-scale[train]'") from error
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise DataError(f"--tokenizer {path} is no SentencePiece model, or is damaged") from error

    def encode(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = model.encode(list(texts))
        return ids

    def encode_with_offsets(text: str) -> tuple[list[int], Offsets]:
        if hasattr(model, "encode_as_offset_mapping"):  # since 0.2.3, which no longer has the other way
            found = model.encode_as_offset_mapping(text)
            return list(found["ids"]), list(found["offsets"])
        pieces = model.encode(text, out_type="immutable_proto").pieces  # type: ignore[arg-type]
        return [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]

    def decode(ids: Sequence[int]) -> str:
        return str(model.decode([token for token in ids if not model.is_control(token)]))

    eos = int(model.eos_id())
    return Tokenizer(
        kind="sentencepiece",
        file=path,
        vocab_size=int(model.vocab_size()),
        eos_id=eos if eos >= 0 else None,
        encode=encode,
        encode_with_offsets=encode_with_offsets,
        decode=decode,
    )


def _load_hf(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as HfTokenizer
    except ImportError as error:
        raise DataError("tokenizers is not installed: pip install 'llama-scale[train]'") from error
    try:
        model = HfTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"--tokenizer {path} is no Hugging Face tokenizer, or is damaged: {error}") from error
    model.no_truncation()
    model.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in model.encode_batch(list(texts), add_special_tokens=False)]

    def encode_with_offsets(text: str) -> tuple[list[int], Offsets]:
        found = model.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets)

    def decode(ids: Sequence[int]) -> str:
        return str(model.decode(list(ids), skip_special_tokens=True))

    vocabulary = model.get_vocab(with_added_tokens=True)
    return Tokenizer(
        kind="hf",
        file=path,
        vocab_size=max(vocabulary.values(), default=-1) + 1,
        eos_id=_hf_eos(path.parent, vocabulary),
        encode=encode,
        encode_with_offsets=encode_with_offsets,
        decode=decode,
    )


def _hf_eos(folder: Path, vocabulary: dict[str, int]) -> int | None:
    """Return the id of the EOS token that the files beside tokenizer.json name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (folder / name).is_file():
            continue
        try:
            settings: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{folder / name} is no JSON: {error}") from error
        token = settings.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in vocabulary:
            return vocabulary[token]
    return None
