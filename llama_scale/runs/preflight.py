"""Check what a run needs from this machine before anything of it is created or started. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llama_scale.checkpoint.manifest import MANIFEST, StartRecord, load_manifest, verify_files
from llama_scale.errors import CheckpointError, DataError, LaunchError
from llama_scale.libraries import missing_message
from llama_scale.runs.task_files import task_faults
from llama_scale.spec.hf_tokenizer import largest_token
from llama_scale.spec.model import InlineModel
from llama_scale.spec.run import RunSpec
from llama_scale.spec.start_folder import TENSOR_FIELDS, check_start, is_hf_folder
from llama_scale.spec.tokenizer import SentencePieceTokenizer, Tokenizer


def check_inputs(
    spec: RunSpec, *, warm_start: bool = True, start: StartRecord | None = None, prepared: Path | None = None
) -> None:
    """Check packages, token files, tokenizer and the checkpoint of a warm start.

    Args:
        spec: Resolved spec.
        warm_start: Look at ``model.init_from``; a run that goes on from its own checkpoint reads it only where it is
            the frozen base of adapters.
        start: What a run that goes on started from; imported weights need their source no more.
        prepared: Folder with the rows that a resumed run has prepared; files that it no longer reads are not checked.

    Raises:
        LaunchError: Something is missing or does not fit; every fault is named at once.
    """
    faults = [
        *_packages(spec),
        *_data(spec, prepared),
        *_tokenizer(spec, begins=warm_start),
        *(_warm_start(spec, start, go_on=not warm_start) if warm_start or spec.adapters else ()),
    ]
    if faults:
        raise LaunchError("\n  ".join([f"{spec.name} cannot start:", *faults]) if len(faults) > 1 else faults[0])


def _packages(spec: RunSpec) -> Iterator[str]:
    if getattr(spec.launcher, "container", None) is not None:  # the image has them; the light install does here
        return
    needed = ["torch", "megatron", "safetensors", "numpy"]
    if spec.model.init_from is not None and is_hf_folder(Path(spec.model.init_from)):
        needed.append("transformers")  # what is imported is proven against it
    fault = missing_message("the workers need", *needed)
    if fault:
        yield fault


def _data(spec: RunSpec, prepared: Path | None) -> Iterator[str]:
    if spec.data.kind == "tasks":
        yield from task_faults(spec, prepared)
        return
    for part in spec.data.blend:
        try:
            tokens = count_tokens(part.path)
        except LaunchError as error:
            yield str(error)
            continue
        # One sample needs seq_length inputs and the label of the last one.
        if tokens <= spec.data.seq_length:
            yield (
                f"{part.path}.bin holds {tokens} tokens, and one sample of data.seq_length={spec.data.seq_length} "
                "needs one more than that; build it from more text, or use a shorter seq_length"
            )


def count_tokens(prefix: str) -> int:
    """Return the number of tokens in a .bin/.idx pair after checking that its two files fit each other.

    Raises:
        DataError: A file is missing, unreadable, truncated or no index.
    """
    from llama_scale.data.reader import TokenFile  # lazy: numpy, which nothing but a real launch needs

    try:
        return len(TokenFile(prefix).tokens)
    except OSError as error:
        raise DataError(f"token file {error.filename or prefix} cannot be read: {error.strerror}") from error


def _tokenizer(spec: RunSpec, *, begins: bool) -> Iterator[str]:
    if spec.tokenizer is None:
        return
    assert isinstance(spec.model, InlineModel)
    try:
        size = vocabulary_size(spec.tokenizer, begins=begins)
    except LaunchError as error:
        yield str(error)
        return
    if size > spec.model.vocab_size:
        yield (
            f"tokenizer {spec.tokenizer.path} has {size} tokens, and the model knows model.vocab_size="
            f"{spec.model.vocab_size}: tokens above that have no embedding; use a vocab_size of at least {size}, or "
            "the tokenizer that belongs to the model"
        )


def vocabulary_size(tokenizer: Tokenizer, *, begins: bool = True) -> int:
    """Return one more than the largest token id of a tokenizer, added tokens included.

    Args:
        tokenizer: A spec's section.
        begins: Whether a run begins with it: then what only tokenizer_config.json names counts, and a SentencePiece
            model must be one that can be converted. A run that goes on began with it as it is.

    Raises:
        LaunchError: It is missing or cannot be read or converted, or the package that reads it is not installed.
    """
    path = Path(tokenizer.path)
    if isinstance(tokenizer, SentencePieceTokenizer):
        if not path.is_file():
            raise LaunchError(f"tokenizer.path {path} does not exist; `llama-scale tokenizer train` writes one")
        return _sentencepiece_size(path, begins=begins)
    file = path / "tokenizer.json"
    if not file.is_file():
        raise LaunchError(f"tokenizer.path {path} holds no tokenizer.json; name a Hugging Face tokenizer folder")
    return _hf_size(file, begins=begins)


def _sentencepiece_size(path: Path, *, begins: bool) -> int:
    if fault := missing_message(f"reading {path} needs", "sentencepiece", "tokenizers"):
        raise LaunchError(fault)
    from llama_scale.data.sentencepiece_folder import read_sentencepiece
    from llama_scale.data.sentencepiece_model import load_sentencepiece

    if not begins:
        return int(load_sentencepiece(path).vocab_size())
    return int(max(read_sentencepiece(path).library.get_vocab(with_added_tokens=True).values())) + 1


def _hf_size(file: Path, *, begins: bool) -> int:
    try:
        import tokenizers
    except ImportError as error:
        raise LaunchError(
            f"cannot read {file}: tokenizers is not installed: pip install 'llama-scale[train]'"
        ) from error
    try:
        vocabulary = tokenizers.Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
        largest = largest_token(file.parent, settings=begins)
    except Exception as error:  # the library raises plain Exception for any fault of the file
        raise LaunchError(f"{file} is no tokenizer, or is damaged: {error}") from error
    return max(max(vocabulary.values(), default=-1), -1 if largest is None else largest[1]) + 1


def _warm_start(spec: RunSpec, start: StartRecord | None, *, go_on: bool) -> Iterator[str]:
    assert isinstance(spec.model, InlineModel)
    if spec.model.init_from is None:
        return
    folder = Path(spec.model.init_from)
    known = start is not None and (start.adapters or start.path) == str(folder.absolute())
    if start is not None and known and (go_on or start.adapters is None) and start.kind != "checkpoint":
        return  # weights that are imported, or will be again
    if getattr(spec.launcher, "container", None) is not None and not folder.exists():
        return  # it may be in the image
    if is_hf_folder(folder):
        yield from (f"{problem.dotted}: {problem.message}" for problem in check_start(spec.model, key="init_from"))
    else:
        yield from _start_checkpoint(spec, folder)


def _start_checkpoint(spec: RunSpec, folder: Path) -> Iterator[str]:
    try:
        manifest = load_manifest(folder)
        verify_files(folder, manifest=manifest, hashes=False)
    except CheckpointError as error:
        yield f"model.init_from: {error}"
        return
    if manifest.base is not None and spec.adapters:
        imported = manifest.started_from is not None and manifest.started_from.kind == "folder"
        if manifest.base.path is not None and not imported and not (Path(manifest.base.path) / MANIFEST).is_file():
            yield f"model.init_from: {folder} holds adapters, and their base {manifest.base.path} is not there"
    elif manifest.base is not None:
        yield (
            f"model.init_from: {folder} holds only what was trained on a frozen base "
            f"({manifest.base.path or 'drawn from a seed'}); name that base, or merge them first: llama-scale convert "
            "export --as merged, then convert import"
        )
    for field in type(manifest.shape).model_fields:
        theirs, ours = getattr(manifest.shape, field), getattr(spec.model, field)
        # Only what changes the tensors; context length and RoPE may be changed on purpose.
        if field in TENSOR_FIELDS and theirs != ours:
            yield (
                f"model.init_from: the checkpoint {folder} has {field}={theirs}, the spec's model {field}={ours}; use "
                "the checkpoint's number, or another checkpoint"
            )
