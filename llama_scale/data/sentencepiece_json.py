"""A SentencePiece model in the form of tokenizer.json, with the ids that SentencePiece itself gives.

SentencePiece's rules are rebuilt from the parts of the ``tokenizers`` library; a model whose rules these parts cannot
express is refused. What is built is compared with SentencePiece on ``PROBES`` and on texts around the model's own
symbols before anyone sees it. Control tokens written in a text (``</s>``) are read as those tokens, as transformers
does and as SentencePiece does not; what stands between two of them is encoded as SentencePiece encodes it alone.

Two differences remain, both rare. Of two ways to cut a text that are equally likely under a Unigram model,
SentencePiece takes the one that its single precision prefers, and the library may take the other. And a model that
normalizes (nmt_nfkc and its relatives) may compose combining marks differently if they are not in canonical order.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.errors import DataError

SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BOUNDARY = "\ufff8"
"""A code point that Unicode has not assigned and never breaks a line, a word or a cluster around."""
_KNOWN_RULES = ("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
"""SentencePiece's own normalizations; any other is a table of the model's maker."""

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


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class _Model:
    """A SentencePiece model's file, as far as encoding depends on it."""

    file: Path
    kind: int
    pieces: tuple[_Piece, ...]
    rules: Any  # sentencepiece_model_pb2.NormalizerSpec
    suffix: bool

    def texts(self, *types: int) -> list[str]:
        return [piece.text for piece in self.pieces if piece.type in types]


def fast_tokenizer(file: Path) -> Any:
    """Return a ``tokenizers.Tokenizer`` with the vocabulary and the rules of a SentencePiece model.

    It puts nothing before or behind a text, as SentencePiece's ``encode`` does.

    Args:
        file: The SentencePiece model.

    Raises:
        DataError: It is not one, or cannot be converted with equal ids; a library is not installed.
    """
    original = load_sentencepiece(file)
    model = _read(file)
    reason = next(_obstacles(model), None)
    if reason is not None:
        raise _refusal(file, reason)
    made = _build(model)
    difference = next(_differences(model, original, made), None)
    if difference is not None:
        raise _refusal(file, difference)
    return made


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


def control_tokens(file: Path) -> list[str]:
    """Return the pieces of a model that stand for no text: control symbols and the unknown piece, in order of id."""
    return _read(file).texts(_CONTROL, _UNKNOWN)


def pieces(file: Path) -> list[str]:
    """Return all pieces of a model in order of their ids."""
    return [piece.text for piece in _read(file).pieces]


def _read(file: Path) -> _Model:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    return _Model(
        file,
        proto.trainer_spec.model_type,
        tuple(_Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces),
        proto.normalizer_spec,
        proto.trainer_spec.treat_whitespace_as_suffix,
    )


def _refusal(file: Path, reason: str) -> DataError:
    return DataError(
        f"the SentencePiece model {file} cannot be converted with equal ids: {reason}; use a Hugging Face tokenizer "
        "folder (tokenizer: {kind: hf}, or --tokenizer FOLDER), or a model without that"
    )


def _obstacles(model: _Model) -> Iterator[str]:
    """Yield why the parts of the ``tokenizers`` library cannot express a model."""
    if model.kind not in (_BPE, _UNIGRAM):
        yield "it is neither a BPE nor a Unigram SentencePiece model"
    if model.suffix:
        yield "it writes the space behind words (treat_whitespace_as_suffix)"
    if model.rules.precompiled_charsmap and model.rules.name not in _KNOWN_RULES:
        yield f"it normalizes text by a table of its own ({model.rules.name or 'without a name'})"
    if unused := model.texts(_UNUSED):
        yield f"its piece {unused[0]!r} is marked as unused"
    if model.kind == _UNIGRAM:
        letters = {text for text in model.texts(_NORMAL) if len(text) == 1}
        for text in model.texts(_NORMAL):
            if not letters.issuperset(text):
                yield f"its piece {text!r} holds a character that is no piece"


def _build(model: _Model) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

    made = Tokenizer(_unigram(model) if model.kind == _UNIGRAM else _bpe(model))
    made.normalizer = _normalizer(model)
    symbols = sorted(model.texts(_USER_DEFINED), key=len, reverse=True)
    if symbols and model.kind == _BPE:  # under Unigram they are pieces like others, with a score of their own
        whole = "|".join(re.escape(symbol.replace(" ", SPACE)) for symbol in symbols)
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(whole), behavior="isolated"),
                # A part that spells a byte's name must not be taken for that byte's piece.
                pre_tokenizers.Split(Regex(r"\A<(?=0x[0-9A-F]{2}>\z)"), behavior="isolated"),
            ]
        )
    made.decoder = _decoder(strip=model.rules.add_dummy_prefix)
    made.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in model.texts(_CONTROL, _UNKNOWN)]
    )
    return made


def _bpe(model: _Model) -> Any:
    from tokenizers import models

    unknown = model.texts(_UNKNOWN)
    return models.BPE(
        vocab={piece.text: number for number, piece in enumerate(model.pieces)},
        merges=_merges(model),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=bool(model.texts(_BYTE)),
        # A user-defined symbol is cut out as a part of its own, and no merges make it.
        ignore_merges=bool(model.texts(_USER_DEFINED)),
    )


def _merges(model: _Model) -> list[tuple[str, str]]:
    """Return the pairs that make up each piece, best piece first: SentencePiece merges by the result's score."""
    return [(left, right) for _, left, right in _scored_merges(model)]


def _scored_merges(model: _Model) -> Iterator[tuple[float, str, str]]:
    usable = set(model.texts(_NORMAL))
    ranked = sorted((-piece.score, i, piece.text) for i, piece in enumerate(model.pieces) if piece.type == _NORMAL)
    for score, _, text in ranked:
        for cut in range(1, len(text)):
            if text[:cut] in usable and text[cut:] in usable:
                yield score, text[:cut], text[cut:]


def _contested(model: _Model) -> Iterator[str]:
    """Yield texts in which two merges of the same score want the same piece.

    SentencePiece then takes the one further left, the library the one that comes first in its list.
    """
    merges = list(_scored_merges(model))
    following: dict[tuple[float, str], list[str]] = {}
    for score, left, right in merges:
        following.setdefault((score, left), []).append(right)
    for score, left, middle in merges:
        for right in following.get((score, middle), ()):
            if not left == middle == right:
                yield f"{left}{middle}{right}".replace(SPACE, " ")


def _unigram(model: _Model) -> Any:
    from tokenizers import models

    scores = [piece.score for piece in model.pieces if piece.type == _NORMAL]
    best, worst = max(scores), min(scores)
    # The library knows no types of pieces: names of bytes and control tokens get a score below any way to spell them.
    never = 16 * (worst - 20.0)

    def score(piece: _Piece) -> float:
        if piece.type == _USER_DEFINED:  # as SentencePiece scores it, so that it is nearly always taken whole
            return float(len(piece.text.encode()) * best - 0.1)
        return piece.score if piece.type == _NORMAL else never

    return models.Unigram(
        [(piece.text, score(piece)) for piece in model.pieces],
        unk_id=next((i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None),
        byte_fallback=bool(model.texts(_BYTE)),
    )


def _normalizer(model: _Model) -> Any:
    from tokenizers import Regex, normalizers

    rules = model.rules
    blank = SPACE if rules.escape_whitespaces else " "
    prefix = [normalizers.Prepend(blank)] if rules.add_dummy_prefix else []
    steps: list[Any] = [] if rules.remove_extra_whitespaces else [*prefix]
    if rules.precompiled_charsmap:
        # The library maps whole clusters, SentencePiece the longest match: compose what composes, part the rest.
        steps += [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"(?<=.)(?=[\p{M}\x{200C}\x{200D}])|(?<=\r)(?=\n)"), _BOUNDARY),
            normalizers.Precompiled(rules.precompiled_charsmap),
            normalizers.Replace(_BOUNDARY, ""),
        ]
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " "), *prefix]
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


def _differences(model: _Model, original: Any, made: Any) -> Iterator[str]:
    """Yield where a built tokenizer does not give the original's ids."""
    symbols = model.texts(_USER_DEFINED)
    if symbols and model.kind == _BPE:
        for number, piece in enumerate(model.pieces):  # parts that are a piece are taken without merging
            if piece.type == _NORMAL and _merged(made, piece.text) != [number]:
                yield f"its piece {piece.text!r} is not what its own merges make of that text"
                break
    around = [text for symbol in symbols for text in (symbol, f"one{symbol}two {symbol} three{symbol}<0x41>{symbol}")]
    contested = itertools.islice(_contested(model), _MOST_CONTESTED) if model.kind == _BPE else ()
    for text in itertools.chain(PROBES, around, contested):
        wanted, got = original.encode(text), made.encode(text, add_special_tokens=False).ids
        if wanted != got and not _equally_likely(model, wanted, got):
            yield f"{text!r} gives {wanted} there and {got} in tokenizer.json"
    for text in model.texts(_CONTROL, _UNKNOWN):
        wanted = [*original.encode("one"), original.piece_to_id(text), *original.encode(" two")]
        got = made.encode(f"one{text} two", add_special_tokens=False).ids
        if wanted != got:
            yield f"{f'one{text} two'!r} gives {got} in tokenizer.json, not {wanted}"


def _merged(made: Any, text: str) -> list[int]:
    """Return the ids that merging alone makes of a text."""
    made.model.ignore_merges = False
    try:
        return [token.id for token in made.model.tokenize(text)]
    finally:
        made.model.ignore_merges = True


def _equally_likely(model: _Model, one: list[int], other: list[int]) -> bool:
    """Tell whether two ways to cut a text have the same likelihood under a Unigram model."""
    if model.kind != _UNIGRAM:
        return False
    spelled = [[model.pieces[number] for number in ids] for ids in (one, other)]
    texts = ["".join(piece.text for piece in parts) for parts in spelled]
    first, second = (sum(piece.score for piece in parts) for parts in spelled)
    return texts[0] == texts[1] and abs(first - second) <= 1e-5 * abs(first)
