"""The one tokenization: a tokenizer as transformers loads it, for token files, tasks, evaluation and exports alike.

A Hugging Face folder is read by transformers itself. A SentencePiece model becomes the tokenizer.json that an export of
the run holds (``sentencepiece_folder``), so that both give the same ids.

Two rules follow from that, and every user of this module keeps them (docs/data.md):

* a text that starts a sequence has before it what the tokenizer itself puts there (``start_ids``: BOS, or nothing), as
  ``tokenizer(text)`` of transformers; a rendered conversation has what its template writes, and nothing else;
* a special token that is written in a text (``</s>``) is read as that token.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama_scale.data.sentencepiece_folder import bare_sentencepiece, read_sentencepiece
from llama_scale.errors import DataError
from llama_scale.spec.hf_tokenizer import has_token, read_settings, read_special_tokens

Offsets = list[tuple[int, int]]
"""Characters ``[start, end)`` of a text that each token stands for."""


class Encoder:
    """Turn texts into ids; can be sent to another process.

    Args:
        library: A ``tokenizers.Tokenizer``; its truncation and padding are switched off.
        splits_special: Whether it spells special tokens out, as ``split_special_tokens`` in tokenizer_config.json asks.
    """

    def __init__(self, library: Any, *, splits_special: bool) -> None:
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = splits_special
        self.library = library

    def __reduce__(self) -> tuple[Any, ...]:
        # The library forgets whether it splits special tokens when it is pickled.
        return _encoder, (self.library, self.library.encode_special_tokens)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; nothing is put before or behind them."""
        return [found.ids for found in self.library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the ids of a text and the characters that each stands for."""
        found = self.library.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets)


def _encoder(library: Any, splits_special: bool) -> Encoder:
    return Encoder(library, splits_special=splits_special)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """Hold a loaded tokenizer.

    Args:
        kind: As in a spec's ``tokenizer.kind``.
        file: The file that defines it: a SentencePiece model or a tokenizer.json.
        encode: Texts to ids.
        vocab_size: One more than the largest id, added tokens included.
        start_ids: What the tokenizer puts before a text that starts a sequence: its BOS, or nothing.
        special_tokens: Key in tokenizer_config.json -> token, as a chat template may use them.
        special_ids: Ids of the special tokens that a text can spell: all but the unknown token.
        eos_id: Id that ends a document; None if the tokenizer has none.
    """

    kind: Literal["sentencepiece", "hf"]
    file: Path
    encode: Encoder
    vocab_size: int
    start_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    special_ids: frozenset[int]
    eos_id: int | None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return str(self.encode.library.decode(list(ids), skip_special_tokens=True))

    def digest(self) -> str:
        """Return the SHA-256 hex of the defining file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def load_tokenizer(path: Path, *, trust_code: bool = False) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path: A SentencePiece model, a tokenizer.json, or a folder with one of tokenizer.json and tokenizer.model.
        trust_code: Run the Python code that a folder names for its tokenizer; else tokenizer.json alone counts.

    Raises:
        DataError: There is none, it is damaged, it cannot be converted with equal ids, or its library is not installed.
    """
    if path.is_dir():
        if bare_sentencepiece(path):
            return load_tokenizer(path / "tokenizer.model")
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return _load(path, file=path / name, trust_code=trust_code)
        raise DataError(f"the tokenizer {path} holds neither tokenizer.json nor tokenizer.model; name a tokenizer")
    if not path.is_file():
        raise DataError(f"the tokenizer {path} does not exist; `llama-scale tokenizer train` makes one")
    if path.name == "tokenizer.json":
        return _load(path.parent, file=path, trust_code=trust_code)
    if path.suffix == ".json":
        with tempfile.TemporaryDirectory(prefix="llama-scale-") as folder:
            shutil.copyfile(path, Path(folder) / "tokenizer.json")
            return _load(Path(folder), file=path)
    found = read_sentencepiece(path)
    splits = found.settings.get("split_special_tokens") is True
    return _tokenizer(found.library, splits_special=splits, named=found.named, file=path, kind="sentencepiece")


def _load(folder: Path, *, file: Path, trust_code: bool = False) -> Tokenizer:
    try:
        read_special_tokens(folder)
        brings_code = "auto_map" in read_settings(folder / "tokenizer_config.json")
    except ValueError as error:
        raise DataError(str(error)) from error
    found = _through_transformers(folder, file=file, brings_code=brings_code, trust_code=trust_code)
    named = {key: token for key, token in found.special_tokens_map.items() if isinstance(token, str)}
    if "eos_token" in named and not has_token(folder, named["eos_token"]):
        del named["eos_token"]  # transformers has just added it, and no model knows it
    splits = bool(getattr(found, "split_special_tokens", False))
    return _tokenizer(found.backend_tokenizer, splits_special=splits, named=named, file=file, kind="hf")


def _tokenizer(
    library: Any, *, splits_special: bool, named: Mapping[str, str], file: Path, kind: Literal["sentencepiece", "hf"]
) -> Tokenizer:
    vocabulary = library.get_vocab(with_added_tokens=True)
    special = {number for number, token in library.get_added_tokens_decoder().items() if token.special}
    special |= {vocabulary[token] for token in named.values() if token in vocabulary}
    encode = Encoder(library, splits_special=splits_special)
    return Tokenizer(
        kind=kind,
        file=file,
        encode=encode,
        vocab_size=max(vocabulary.values(), default=-1) + 1,
        start_ids=_start_ids(library),
        special_tokens=named,
        special_ids=frozenset(special - {vocabulary.get(named.get("unk_token", ""))}),
        eos_id=vocabulary.get(named["eos_token"]) if "eos_token" in named else None,
    )


def _through_transformers(folder: Path, *, file: Path, brings_code: bool, trust_code: bool) -> Any:
    """Return a folder's tokenizer as ``AutoTokenizer`` makes it of an exported LLaMA's folder."""
    try:
        from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
    except ImportError as error:
        raise DataError("transformers is not installed: pip install 'llama-scale[train]'") from error
    try:
        if brings_code and not trust_code:  # an export leaves the code out, and names this class
            found = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        else:
            found = AutoTokenizer.from_pretrained(
                str(folder), config=LlamaConfig(), trust_remote_code=trust_code, local_files_only=True
            )
    except Exception as error:  # whatever a damaged file makes the libraries raise
        reason = " ".join(str(error).split())
        raise DataError(f"the tokenizer {file} is no Hugging Face tokenizer, or is damaged: {reason}") from error
    if not hasattr(found, "backend_tokenizer"):
        raise DataError(
            f"the tokenizer {file} is made by {type(found).__name__}, which has no tokenizer.json; save it with "
            "transformers' save_pretrained as a fast tokenizer, and name that folder"
        )
    return found


def _start_ids(library: Any) -> tuple[int, ...]:
    """Return the ids that a tokenizer puts before a text."""
    found = library.encode("a", add_special_tokens=True)
    ids = []
    for token, added in zip(found.ids, found.special_tokens_mask, strict=True):
        if not added:
            break
        ids.append(token)
    return tuple(ids)
