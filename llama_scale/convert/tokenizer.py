"""The tokenizer of an exported model, in the form that transformers loads.

A Hugging Face tokenizer is copied. A SentencePiece model becomes a ``tokenizer.json`` that gives the same ids as
SentencePiece itself; that is checked on texts with spaces, line ends, digits and several scripts while exporting.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llama_scale.convert.folders import copy_small_files, copy_templates, has_tokenizer, read_json, write_json
from llama_scale.errors import ConvertError

_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_SETTINGS = "tokenizer_config.json"
_NOT_EXPORTED = ("auto_map", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file")

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
    "if (x != 0) { return a[i] * 2; }  // code",
    "",
    " ",
)
"""Texts on which a converted tokenizer must equal the original."""


def write_tokenizer(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    """Write a tokenizer into a Hugging Face folder.

    Args:
        source: SentencePiece model, or folder with a Hugging Face tokenizer.
        folder: Folder to write to.
        vocab_size: Rows of the model's embedding; every id must be below it.

    Returns:
        ``bos``, ``eos``, ``pad`` -> id or None; a name is absent where the tokenizer leaves it to config.json.

    Raises:
        ConvertError: It is damaged, does not fit the model, or cannot be converted with equal ids.
    """
    if source.is_dir():
        return _copy_folder(source, folder, vocab_size=vocab_size)
    ids = _convert_sentencepiece(source, folder, vocab_size=vocab_size)
    _add_templates(source.parent, folder)
    return ids


def _copy_folder(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    if not has_tokenizer(source):
        raise ConvertError(
            f"{source} holds no tokenizer.json and no tokenizer.model; give a tokenizer's folder or file"
        )
    copy_small_files(source, folder, configs=False)
    _leave_out_of_settings(folder)
    definition = read_json(source / "tokenizer.json")
    if definition is None:
        return {}
    ids = _ids(definition)
    if ids and max(ids.values()) >= vocab_size:
        token, largest = max(ids.items(), key=lambda item: item[1])
        raise ConvertError(
            f"the tokenizer {source} has the id {largest} ({token!r}), but the model's vocab_size is {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    settings = read_json(source / _SETTINGS) or {}
    found: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad"):
        setting = settings.get(f"{name}_token")
        text = setting.get("content") if isinstance(setting, dict) else setting
        if text in ids:
            found[name] = ids[text]
    return found


def _leave_out_of_settings(folder: Path) -> None:
    """Take out of tokenizer_config.json what names code, which is not exported, and paths of this machine."""
    settings = read_json(folder / _SETTINGS) or {}
    kept = {key: value for key, value in settings.items() if key not in _NOT_EXPORTED}
    if "auto_map" in settings and (folder / "tokenizer.json").is_file():
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # training read tokenizer.json, not the class of that code
    if kept != settings:
        write_json(folder / _SETTINGS, kept)


def _add_templates(source: Path, folder: Path) -> None:
    """Add the chat templates that lie beside a SentencePiece model, which conversations were trained with."""
    copy_templates(source, folder)
    template = (read_json(source / _SETTINGS) or {}).get("chat_template")
    if template is not None:
        write_json(folder / _SETTINGS, (read_json(folder / _SETTINGS) or {}) | {"chat_template": template})


def _ids(definition: dict[str, Any]) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, added tokens included."""
    vocab = (definition.get("model") or {}).get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {row[0]: number for number, row in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in definition.get("added_tokens") or ()}


def _convert_sentencepiece(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    from sentencepiece import SentencePieceProcessor

    try:
        original = SentencePieceProcessor(model_file=str(source))
    except (OSError, RuntimeError) as error:
        raise ConvertError(f"{source} is no SentencePiece model: {error}") from error
    if original.vocab_size() > vocab_size:
        raise ConvertError(
            f"the tokenizer {source} has {original.vocab_size()} pieces, but the model's vocab_size is {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    made = _equal_tokenizer(source, original)
    made.save(str(folder / "tokenizer.json"))
    shutil.copyfile(source, folder / "tokenizer.model")
    ids = {name: getattr(original, f"{name}_id")() for name in ("bos", "eos", "pad", "unk")}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    settings |= {f"{name}_token": original.id_to_piece(number) for name, number in ids.items() if number >= 0}
    write_json(folder / _SETTINGS, settings)
    return {name: (ids[name] if ids[name] >= 0 else None) for name in ("bos", "eos", "pad")}


def _equal_tokenizer(source: Path, original: Any) -> Any:
    """Return the first way of writing the tokenizer down that gives the original's ids on all probes."""
    symbols = [original.id_to_piece(i) for i in range(original.vocab_size()) if _is_user_defined(original, i)]
    probes = [*PROBES, *(f"one{s}two {s} three" for s in symbols)]
    # The library cannot tell SentencePiece's line end pair apart from two characters in all cases, nor say "prefix
    # only once" and "also before a space" at a time, so which form fits depends on the model's rules.
    forms = [(pair, first) for pair in (False, True) for first in (False, True)]
    fault = ""
    for split_pairs, prefix_first in forms:
        made = make_fast_tokenizer(source, split_pairs=split_pairs, prefix_first=prefix_first)
        for text in probes:
            wanted, got = original.encode(text), made.encode(text, add_special_tokens=False).ids
            if wanted != got:
                fault = fault or f"{text!r} gives {wanted} there and {got} in tokenizer.json"
                break
        else:
            return made
    raise ConvertError(
        f"the SentencePiece model {source} cannot be converted with equal ids: {fault}; give a Hugging Face "
        "tokenizer folder with --tokenizer"
    )


def _is_user_defined(original: Any, number: int) -> bool:
    special = original.is_control(number) or original.is_unknown(number) or original.is_byte(number)
    return not special and not original.is_unused(number) and original.get_score(number) == 0.0 and number > 0


def make_fast_tokenizer(source: Path, *, split_pairs: bool = False, prefix_first: bool = False) -> Any:
    """Return a ``tokenizers.Tokenizer`` with the vocabulary and rules of a SentencePiece BPE or Unigram model.

    No BOS or EOS is added to a text, as SentencePiece's ``encode`` adds none.

    Args:
        source: The SentencePiece model.
        split_pairs: Treat carriage return and line feed as two line feeds before normalizing.
        prefix_first: Put the dummy prefix only before the text, not behind every user-defined symbol; then a text
            that starts with a space gets none.

    Raises:
        ConvertError: The model is of another type (word, char).
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(source.read_bytes())
    kind = proto.trainer_spec.model_type
    pieces = [(p.piece, p.score, p.type) for p in proto.pieces]
    unknown = next((i for i, (_, _, t) in enumerate(pieces) if t == _UNKNOWN), None)
    byte_fallback = any(t == _BYTE for _, _, t in pieces)
    model: Any
    if kind == _UNIGRAM:
        model = models.Unigram([(p, s) for p, s, _ in pieces], unk_id=unknown, byte_fallback=byte_fallback)
    elif kind == _BPE:
        model = models.BPE(
            vocab={p: i for i, (p, _, _) in enumerate(pieces)},
            merges=_merges(pieces),
            unk_token=None if unknown is None else pieces[unknown][0],
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    else:
        raise ConvertError(f"{source} is neither a BPE nor a Unigram SentencePiece model; only these can be exported")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(proto.normalizer_spec, split_pairs=split_pairs, prefix_first=prefix_first)
    if prefix_first and proto.normalizer_spec.add_dummy_prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = _decoder(strip=proto.normalizer_spec.add_dummy_prefix)
    tokenizer.add_special_tokens(
        [AddedToken(p, special=True, normalized=False) for p, _, t in pieces if t in (_CONTROL, _UNKNOWN)]
    )
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p, _, t in pieces if t == _USER_DEFINED])
    return tokenizer


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Return the pairs that make up each piece, best piece first: SentencePiece merges by the result's score."""
    usable = {p for p, _, t in pieces if t in (_NORMAL, _USER_DEFINED, _UNUSED)}
    ranked = sorted(((-s, i, p) for i, (p, s, t) in enumerate(pieces) if t in (_NORMAL, _UNUSED)))
    return [
        (piece[:cut], piece[cut:])
        for _, _, piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in usable and piece[cut:] in usable
    ]


def _normalizer(spec: Any, *, split_pairs: bool, prefix_first: bool) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if split_pairs:
        steps.append(normalizers.Replace("\r\n", "\n\n"))
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and not prefix_first:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _decoder(*, strip: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
