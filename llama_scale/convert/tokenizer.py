"""The tokenizer of an exported model, in the form that transformers loads.

A Hugging Face tokenizer is copied. A SentencePiece model becomes the folder that the run was trained with
(``data/sentencepiece_folder.py``).
"""

from __future__ import annotations

from pathlib import Path

from llama_scale.convert.folders import copy_small_files, has_tokenizer, read_json, write_json
from llama_scale.data.sentencepiece_folder import NOT_EXPORTED, bare_sentencepiece, read_sentencepiece
from llama_scale.errors import ConvertError, DataError
from llama_scale.spec.hf_tokenizer import largest_token, read_special_tokens, token_ids

_SETTINGS = "tokenizer_config.json"


def write_tokenizer(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    """Write a tokenizer into a Hugging Face folder.

    Args:
        source: SentencePiece model, or folder with a tokenizer.
        folder: Folder to write to.
        vocab_size: Rows of the model's embedding; every id must be below it.

    Returns:
        ``bos``, ``eos``, ``pad`` -> id or None; a name is absent where the tokenizer leaves it to config.json.

    Raises:
        ConvertError: It is damaged, does not fit the model, or cannot be converted with equal ids.
    """
    try:
        if source.is_dir() and not bare_sentencepiece(source):
            return _copy_folder(source, folder, vocab_size=vocab_size)
        read_sentencepiece(source / "tokenizer.model" if source.is_dir() else source).write(folder)
    except DataError as error:
        raise ConvertError(str(error)) from error
    found = _token_ids(folder, source=source, vocab_size=vocab_size)
    return {name: found.get(name) for name in ("bos", "eos", "pad")}


def _copy_folder(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    if not has_tokenizer(source):
        raise ConvertError(
            f"{source} holds no tokenizer.json and no tokenizer.model; give a tokenizer's folder or file"
        )
    copy_small_files(source, folder, configs=False)
    _leave_out_of_settings(folder)
    return _token_ids(source, source=source, vocab_size=vocab_size)


def _leave_out_of_settings(folder: Path) -> None:
    """Take out of tokenizer_config.json what names code, which is not exported, and paths of this machine."""
    settings = read_json(folder / _SETTINGS) or {}
    kept = {key: value for key, value in settings.items() if key not in NOT_EXPORTED}
    if "auto_map" in settings and (folder / "tokenizer.json").is_file():
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # training read tokenizer.json, not the class of that code
    if kept != settings:
        write_json(folder / _SETTINGS, kept)


def _token_ids(folder: Path, *, source: Path, vocab_size: int) -> dict[str, int | None]:
    """Return the ids of BOS, EOS and padding that a Hugging Face tokenizer names.

    Raises:
        ConvertError: It has an id that the model has no row for.
    """
    ids = token_ids(folder)
    if ids is None:
        return {}
    largest = largest_token(folder, settings=False)
    if largest is not None and largest[1] >= vocab_size:
        raise ConvertError(
            f"the tokenizer {source} has the id {largest[1]} ({largest[0]!r}), but the model's vocab_size is "
            f"{vocab_size}; give the tokenizer that the model was trained with"
        )
    named = read_special_tokens(folder).named
    return {name: ids[token] for name in ("bos", "eos", "pad") if (token := named.get(f"{name}_token")) in ids}
