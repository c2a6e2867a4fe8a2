"""What the JSON files of a Hugging Face tokenizer folder say, read without the tokenizers package.

Two things are read here and nowhere else: the special tokens (``read_special_tokens``) and the ids of all tokens
(``token_ids``), both as transformers reads them, so that a token that only tokenizer_config.json names counts too.
What a class of transformers adds by itself (``GPT2Tokenizer`` knows an ``<|endoftext|>``) is not in the files.

A folder that is not there yet, or a file of a form that is not known here, is no fault of the spec; a launch looks
again before it starts anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.errors import Problem

_MAX_BYTES = 256 * 1024 * 1024
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every tokenizer of transformers may have, by their keys in tokenizer_config.json."""
_FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The tokens that the files beside tokenizer.json name.

    Args:
        named: Key -> token: those of ``NAMES`` that are set, and a model's own keys that end in ``_token``.
        extra: Special tokens without a name, in the files' order.
        declared: Tokens that the files give an id to, in the order of the ids.
        special: Those of ``declared`` that the files call special.
        flags: Token -> what is said of it of ``lstrip``, ``rstrip`` (it takes the white space beside it) and
            ``single_word``.
    """

    named: Mapping[str, str]
    extra: tuple[str, ...] = ()
    declared: Mapping[str, int]
    special: frozenset[str] = frozenset()
    flags: Mapping[str, tuple[str, ...]]

    def added(self) -> Iterator[str]:
        """Yield all tokens in the order in which transformers adds those that tokenizer.json does not have."""
        yield from self.declared
        yield from self.named.values()
        yield from self.extra


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read tokenizer_config.json, special_tokens_map.json and added_tokens.json as transformers does.

    The two others count only where tokenizer_config.json has no ``added_tokens_decoder``; special_tokens_map.json then
    replaces what tokenizer_config.json names.

    Args:
        folder: Folder of the files; a missing file is an empty one.

    Raises:
        ValueError: A file is not JSON, or not an object.
    """
    settings = read_settings(folder / "tokenizer_config.json")
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    values = {key: value for key, value in settings.items() if key in NAMES or _own_name(key, value)}
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        rows = sorted((int(number), token) for number, token in decoder.items() if isinstance(token, dict))
        declared = {str(token["content"]): number for number, token in rows}
        special = frozenset(str(token["content"]) for _, token in rows if token.get("special"))
        flags = {str(token["content"]): tuple(flag for flag in _FLAGS if token.get(flag)) for _, token in rows}
    else:
        older = read_settings(folder / "special_tokens_map.json")
        extra = older.get("extra_special_tokens") or older.get("additional_special_tokens") or extra
        values |= {key: value for key, value in older.items() if key in NAMES}
        added = read_settings(folder / "added_tokens.json")
        declared = {str(token): int(number) for token, number in sorted(added.items(), key=lambda row: row[1])}
        special = frozenset()
        flags = {}
    if isinstance(extra, dict):  # a model's own names
        values |= extra
        extra = None
    ordered = {key: values[key] for key in (*NAMES, *values) if key in values}  # as transformers adds them
    named = {key: text for key, value in ordered.items() if (text := _text(value)) is not None}
    unnamed = tuple(text for value in extra or () if (text := _text(value)) is not None)
    special |= declared.keys() & {*named.values(), *unnamed}
    return SpecialTokens(named=named, extra=unnamed, declared=declared, special=special, flags=flags)


def read_settings(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is no such file.

    Raises:
        ValueError: The file is not JSON, or not an object.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {type(found).__name__}, not an object")
    return found


def _own_name(key: str, value: Any) -> bool:
    """Tell whether a setting is a special token that only this model has, such as ``image_token``."""
    return key.endswith("_token") and isinstance(value, str)


def _text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def token_ids(folder: Path) -> dict[str, int] | None:
    """Return token -> id as transformers has them: vocabulary, added tokens, and what the settings add to both.

    Args:
        folder: Folder with tokenizer.json.

    Returns:
        None where the file is missing, larger than 256 MiB, or of another form.
    """
    found = _read(folder)
    return None if found is None else _with_settings(*found)


def _read(folder: Path) -> tuple[dict[str, int], dict[str, int], SpecialTokens] | None:
    """Return the vocabulary and the added tokens of tokenizer.json, and what the settings name."""
    try:
        with (folder / "tokenizer.json").open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        document = json.loads(raw) if len(raw) <= _MAX_BYTES else None
        tokens = read_special_tokens(folder)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    added = document.get("added_tokens")
    rows = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    there = {row["content"]: row["id"] for row in rows if isinstance(row.get("id"), int) and "content" in row}
    return _vocabulary(document), there, tokens


def _with_settings(vocabulary: dict[str, int], there: dict[str, int], tokens: SpecialTokens) -> dict[str, int]:
    found = dict(there)
    for token in tokens.added():
        if token not in found:
            # As the library counts: behind the vocabulary, or behind the last token added to it.
            behind = max(found.values(), default=-1) + 1
            found[token] = vocabulary.get(token, max(behind, len(vocabulary)))
    return vocabulary | found


def _vocabulary(document: dict[str, Any]) -> dict[str, int]:
    """Return ``model.vocab``, which is a mapping (BPE, WordPiece, WordLevel) or a list in order (Unigram)."""
    model = document.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(found, dict):
        return {token: number for token, number in found.items() if isinstance(number, int)}
    rows = found if isinstance(found, list) else []
    return {row[0]: number for number, row in enumerate(rows) if isinstance(row, list)}


def check_vocabulary(tokenizer: Any, vocab_size: int, *, settings: bool) -> list[Problem]:
    """Return a problem if a section ``tokenizer`` of kind hf has ids that the model does not know.

    Args:
        tokenizer: The section.
        vocab_size: Of the model.
        settings: See ``largest_token``; a run of version 0.1 began without this look at the settings, and goes on so.
    """
    largest = largest_token(Path(tokenizer.path), settings=settings)
    if largest is None or largest[1] < vocab_size:
        return []
    return [
        Problem(
            path=("tokenizer", "path"),
            message=f"the largest token id of {tokenizer.path} is {largest[1]} ({largest[0]!r}), and the model knows "
            f"the ids below vocab_size={vocab_size}: tokens above have no embedding",
            hint=f"use a vocab_size of at least {largest[1] + 1}, or the tokenizer that belongs to the model",
            code="tokenizer-vocabulary",
        )
    ]


def largest_token(folder: Path, *, settings: bool) -> tuple[str, int] | None:
    """Return the token with the largest id of a folder, and the id; None if it cannot be told.

    Args:
        folder: Folder with tokenizer.json.
        settings: Count the tokens too that only the settings name, but for a padding token: many folders have one
            behind the vocabulary, and neither training nor evaluation here feeds it to the model.
    """
    found = _read(folder)
    if found is None:
        return None
    vocabulary, there, tokens = found
    ids = vocabulary | there
    if settings:
        padding = {tokens.named.get("pad_token")} - ids.keys()
        ids = {token: number for token, number in _with_settings(*found).items() if token not in padding}
    return max(ids.items(), key=lambda row: row[1], default=None)


def has_token(folder: Path, token: str) -> bool:
    """Tell whether tokenizer.json, or a file that gives it an id, has a token; True where that cannot be told."""
    found = _read(folder)
    return found is None or token in found[0] or token in found[1] or token in found[2].declared
