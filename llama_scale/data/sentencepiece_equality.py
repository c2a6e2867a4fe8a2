"""The tokenizer.json of a SentencePiece model, compared with SentencePiece itself before anyone uses it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_scale.data.sentencepiece_json import build, obstacles, scored_merges
from llama_scale.data.sentencepiece_model import (
    BPE,
    CONTROL,
    NORMAL,
    SPACE,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    load_sentencepiece,
    read_model,
)
from llama_scale.errors import DataError

_MOST_CONTESTED = 20_000

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "two  spaces,   three, and a trailing one ",
    " leading space",
    "line one\nline two\n\n\tindented\r\n",
    "3.14159 2026-11-24 1,000,000",
    "na\u00efve caf\u00e9 \u00fcber stra\u00dfe \u0141\u00f3d\u017a",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f",
    "emoji \U0001f600\U0001f44d\U0001f3fd and rare \U00010348",
    "full width \uff21\uff22\uff11 and ligature \ufb01",
    "decomposed e\u0302\u0301 \u304b\u3099 \u1112\u1161\u11ab and alone \u0301",
    "if (x != 0) { return a[i] * 2; }  // code",
    "byte names <0x41><0x0A> and a mark \u2581 \u2581",
    "\u0007 control \u00a0 and no-break \u200d\r\n",
    "",
    " ",
)
"""Texts on which a converted tokenizer must equal the original."""


def fast_tokenizer(file: Path, *, prefix_once: bool = False) -> Any:
    """Return a ``tokenizers.Tokenizer`` with the vocabulary and the rules of a SentencePiece model.

    It puts nothing before or behind a text, as SentencePiece's ``encode`` does.

    Args:
        file: The SentencePiece model.
        prefix_once: Put the model's space before a text only, not before each part behind a control token. Models that
            remove or do not escape spaces have it before each part.

    Raises:
        DataError: It is not one, or cannot be converted with equal ids; a library is not installed.
    """
    original = load_sentencepiece(file)
    model = read_model(file)
    reason = next(obstacles(model), None)
    if reason is not None:
        raise _refusal(file, reason)
    once = prefix_once and model.rules.escape_whitespaces and not model.rules.remove_extra_whitespaces
    made = build(model, prefix_once=once)
    difference = next(_differences(model, original, made, prefix_once=once), None)
    if difference is not None:
        raise _refusal(file, difference)
    return made


def _refusal(file: Path, reason: str) -> DataError:
    return DataError(
        f"the SentencePiece model {file} cannot be converted with equal ids: {reason}; use a Hugging Face tokenizer "
        "folder (tokenizer: {kind: hf}, or --tokenizer FOLDER), or a model without that"
    )


def _differences(model: SentencePieceModel, original: Any, made: Any, *, prefix_once: bool) -> Iterator[str]:
    """Yield where a built tokenizer does not give the original's ids."""
    symbols = model.texts(USER_DEFINED)
    if symbols and model.kind == BPE:
        for number, piece in enumerate(model.pieces):  # parts that are a piece are taken without merging
            if piece.type == NORMAL and _merged(made, piece.text) != [number]:
                yield f"its piece {piece.text!r} is not what its own merges make of that text"
                break
    around = [text for symbol in symbols for text in (symbol, f"one{symbol}two {symbol} three{symbol}<0x41>{symbol}")]
    contested = itertools.islice(_contested(model), _MOST_CONTESTED) if model.kind == BPE else ()
    for text in itertools.chain(PROBES, around, contested):
        wanted, got = original.encode(text), made.encode(text, add_special_tokens=False).ids
        if wanted != got and not _equally_likely(model, wanted, got):
            yield f"{text!r} gives {wanted} there and {got} in tokenizer.json"
    # Without a prefix of its own, " two" is what "two" is with one.
    behind = "two" if prefix_once and model.rules.add_dummy_prefix else " two"
    for text in model.texts(CONTROL, UNKNOWN):
        wanted = [*original.encode("one"), original.piece_to_id(text), *original.encode(behind)]
        got = made.encode(f"one{text} two", add_special_tokens=False).ids
        if wanted != got:
            yield f"{f'one{text} two'!r} gives {got} in tokenizer.json, not {wanted}"


def _contested(model: SentencePieceModel) -> Iterator[str]:
    """Yield texts in which two merges of the same score want the same piece.

    SentencePiece then takes the one further left, the library the one that comes first in its list.
    """
    merges = list(scored_merges(model))
    following: dict[tuple[float, str], list[str]] = {}
    for score, left, right in merges:
        following.setdefault((score, left), []).append(right)
    for score, left, middle in merges:
        for right in following.get((score, middle), ()):
            if not left == middle == right:
                yield f"{left}{middle}{right}".replace(SPACE, " ")


def _merged(made: Any, text: str) -> list[int]:
    """Return the ids that merging alone makes of a text."""
    made.model.ignore_merges = False
    try:
        return [token.id for token in made.model.tokenize(text)]
    finally:
        made.model.ignore_merges = True


def _equally_likely(model: SentencePieceModel, one: list[int], other: list[int]) -> bool:
    """Tell whether two ways to cut a text have the same likelihood under a Unigram model."""
    if model.kind != UNIGRAM:
        return False
    if sorted(one) == sorted(other):  # also where the unknown piece stands for different characters
        return True
    spelled = [[model.pieces[number] for number in ids] for ids in (one, other)]
    texts = ["".join(piece.text for piece in parts) for parts in spelled]
    first, second = (sum(piece.score for piece in parts) for parts in spelled)
    return texts[0] == texts[1] and abs(first - second) <= 1e-5 * abs(first)
