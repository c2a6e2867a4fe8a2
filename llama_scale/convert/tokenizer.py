"""The tokenizer of an exported model: found beside the weights, and in the form that transformers loads.

A Hugging Face tokenizer is copied. A SentencePiece model becomes the folder that the run was trained with
(``data/sentencepiece_folder.py``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from llama_scale.convert.folders import ORIGIN, run_of, tokenizer_files
from llama_scale.data.sentencepiece_folder import bare_sentencepiece, read_sentencepiece
from llama_scale.errors import ConvertError, DataError, SpecError
from llama_scale.spec.hf_tokenizer import largest_token, read_special_tokens, token_ids
from llama_scale.spec.load import load_spec


def find_tokenizer(checkpoint: Path, *, asked: Path | None) -> Path | None:
    """Return the tokenizer that belongs to a checkpoint: a SentencePiece file or a Hugging Face folder.

    In this order: the one asked for, the one kept at import, the one in the spec of the checkpoint's run, the one of
    the checkpoint that the run started from.

    Raises:
        ConvertError: The one asked for, or named in the spec, does not exist.
    """
    if asked is not None:
        if not asked.exists():
            raise ConvertError(f"--tokenizer {asked} does not exist; give a SentencePiece .model or a tokenizer folder")
        return asked
    if _has_tokenizer(checkpoint / ORIGIN):
        return checkpoint / ORIGIN
    run = run_of(checkpoint)
    if run is None:
        return None
    try:
        spec = load_spec(run / "spec.yaml")
    except SpecError as error:
        raise ConvertError(
            f"the tokenizer is not known, because {run / 'spec.yaml'} cannot be read: {error}"
        ) from error
    if spec.tokenizer is not None:
        path = Path(spec.tokenizer.path)
        if not path.exists():
            raise ConvertError(
                f"the run's tokenizer {path} does not exist any more; restore it or give another with --tokenizer"
            )
        return path
    started_from = getattr(spec.model, "init_from", None)
    if started_from is not None and _has_tokenizer(Path(started_from) / ORIGIN):
        return Path(started_from) / ORIGIN
    return None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


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
    if source.is_dir() and not bare_sentencepiece(source):
        return _copy_folder(source, folder, vocab_size=vocab_size)
    source = source / "tokenizer.model" if source.is_dir() else source
    return _convert_sentencepiece(source, folder, vocab_size=vocab_size)


def _copy_folder(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    if not _has_tokenizer(source):
        raise ConvertError(
            f"{source} holds no tokenizer.json and no tokenizer.model; give a tokenizer's folder or file"
        )
    for path in tokenizer_files(source):
        if not path.name.startswith(("config", "generation_config")):
            shutil.copyfile(path, folder / path.name)
    return _token_ids(source, source=source, vocab_size=vocab_size)


def _token_ids(folder: Path, *, source: Path, vocab_size: int) -> dict[str, int | None]:
    """Return the ids of BOS, EOS and padding that a Hugging Face tokenizer names.

    Raises:
        ConvertError: It has an id that the model has no row for.
    """
    ids = token_ids(folder)
    if ids is None:
        return {}
    largest = largest_token(folder)
    if largest is not None and largest[1] >= vocab_size:
        raise ConvertError(
            f"the tokenizer {source} has the id {largest[1]} ({largest[0]!r}), but the model's vocab_size is "
            f"{vocab_size}; give the tokenizer that the model was trained with"
        )
    named = read_special_tokens(folder).named
    return {name: ids[token] for name in ("bos", "eos", "pad") if (token := named.get(f"{name}_token")) in ids}


def _convert_sentencepiece(source: Path, folder: Path, *, vocab_size: int) -> dict[str, int | None]:
    try:
        read_sentencepiece(source).write(folder)
    except DataError as error:
        raise ConvertError(str(error)) from error
    found = _token_ids(folder, source=source, vocab_size=vocab_size)
    return {name: found.get(name) for name in ("bos", "eos", "pad")}
