"""A SentencePiece model in the form of tokenizer.json, with the ids that SentencePiece itself gives.

SentencePiece's rules are rebuilt from the parts of the ``tokenizers`` library; a model whose rules these parts cannot
express is refused. Control tokens written in a text (``</s>``) are read as those tokens, as transformers does and as
SentencePiece does not; what stands between two of them is encoded as SentencePiece encodes it alone.

Two differences remain, both rare. Of two ways to cut a text that are equally likely under a Unigram model,
SentencePiece takes the one that its single precision prefers, and the library may take the other. And a model that
normalizes (nmt_nfkc and its relatives) may compose combining marks differently if they are not in canonical order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llama_scale.data.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
)

_BOUNDARY = "\ufff8"
"""A code point that Unicode has not assigned: no text has it, and clusters of characters end at it."""
_KNOWN_RULES = ("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
"""SentencePiece's own normalizations; any other is a table of the model's maker."""


def obstacles(model: SentencePieceModel) -> Iterator[str]:
    """Yield why the parts of the ``tokenizers`` library cannot express a model."""
    if model.kind not in (BPE, UNIGRAM):
        yield "it is neither a BPE nor a Unigram SentencePiece model"
    if model.suffix:
        yield "it writes the space behind words (treat_whitespace_as_suffix)"
    if model.rules.precompiled_charsmap and model.rules.name not in _KNOWN_RULES:
        yield f"it normalizes text by a table of its own ({model.rules.name or 'without a name'})"
    if unused := model.texts(UNUSED):
        yield f"its piece {unused[0]!r} is marked as unused"
    if model.kind == UNIGRAM:
        letters = {text for text in model.texts(NORMAL) if len(text) == 1}
        for text in model.texts(NORMAL):
            if not letters.issuperset(text):
                yield f"its piece {text!r} holds a character that is no piece"


def build(model: SentencePieceModel, *, prefix_once: bool = False) -> Any:
    """Return a ``tokenizers.Tokenizer`` with the vocabulary and the rules of a model that has no obstacles.

    It puts nothing before or behind a text, as SentencePiece's ``encode`` does.

    Args:
        model: The model.
        prefix_once: See ``fast_tokenizer``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

    made = Tokenizer(_unigram(model) if model.kind == UNIGRAM else _bpe(model))
    made.normalizer = _normalizer(model, prefix=model.rules.add_dummy_prefix and not prefix_once)
    parts: list[Any] = []
    if model.rules.add_dummy_prefix and prefix_once:
        # The first one prepends a space where a text begins, and does so before a space too: there are none but
        # SPACE by now. The second writes it as SPACE.
        parts.append(pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False))
        parts.append(pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False))
    symbols = sorted(model.texts(USER_DEFINED), key=len, reverse=True)
    if symbols and model.kind == BPE:  # under Unigram they are pieces like others, with a score of their own
        # One with a space in it is never found: the text has SPACE there by now.
        whole = "|".join(map(re.escape, symbols))
        parts.append(pre_tokenizers.Split(Regex(whole), behavior="isolated"))
        if model.texts(BYTE):  # a part that spells a byte's name must not be taken for that byte's piece
            parts.append(pre_tokenizers.Split(Regex(r"\A<(?=0x[0-9A-F]{2}>\z)"), behavior="isolated"))
    if parts:
        made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = _decoder(strip=model.rules.add_dummy_prefix)
    made.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in model.texts(CONTROL, UNKNOWN)]
    )
    return made


def _bpe(model: SentencePieceModel) -> Any:
    from tokenizers import models

    unknown = model.texts(UNKNOWN)
    return models.BPE(
        vocab={piece.text: number for number, piece in enumerate(model.pieces)},
        merges=_merges(model),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=bool(model.texts(BYTE)),
        # A user-defined symbol is cut out as a part of its own, and no merges make it.
        ignore_merges=bool(model.texts(USER_DEFINED)),
    )


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Return the pairs that make up each piece, best piece first: SentencePiece merges by the result's score."""
    return [(left, right) for _, left, right in scored_merges(model)]


def scored_merges(model: SentencePieceModel) -> Iterator[tuple[float, str, str]]:
    """Yield the score of each piece with each pair of pieces that makes it up, best piece first."""
    usable = set(model.texts(NORMAL))
    ranked = sorted((-piece.score, i, piece.text) for i, piece in enumerate(model.pieces) if piece.type == NORMAL)
    for score, _, text in ranked:
        for cut in range(1, len(text)):
            if text[:cut] in usable and text[cut:] in usable:
                yield score, text[:cut], text[cut:]


def _unigram(model: SentencePieceModel) -> Any:
    from tokenizers import models

    worst = min(piece.score for piece in model.pieces if piece.type == NORMAL)
    # The library knows no types of pieces: names of bytes and control tokens get a score below any way to spell them.
    never = 16 * (worst - 20.0)

    def score(piece: Piece) -> float:
        if piece.type == USER_DEFINED:  # as SentencePiece 0.2.3 scores it, so that it is nearly always taken whole
            return 0.1 * (len(piece.text.encode()) - 1)
        return piece.score if piece.type == NORMAL else never

    return models.Unigram(
        [(piece.text, score(piece)) for piece in model.pieces],
        unk_id=next((i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN), None),
        byte_fallback=bool(model.texts(BYTE)),
    )


def _normalizer(model: SentencePieceModel, *, prefix: bool) -> Any:
    from tokenizers import Regex, normalizers

    rules = model.rules
    blank = SPACE if rules.escape_whitespaces else " "
    prepend = [normalizers.Prepend(blank)] if prefix else []
    steps: list[Any] = [] if rules.remove_extra_whitespaces else [*prepend]
    if rules.precompiled_charsmap:
        # The library maps whole clusters, SentencePiece the longest match: compose what composes, part the rest.
        steps += [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"(?<=.)(?=[\p{M}\x{200C}\x{200D}])|(?<=\r)(?=\n)"), _BOUNDARY),
            normalizers.Precompiled(rules.precompiled_charsmap),
            normalizers.Replace(_BOUNDARY, ""),
        ]
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " "), *prepend]
    if rules.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{blank}+\z"), ""))
    return normalizers.Sequence(steps)


def _decoder(*, strip: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
