"""Folders of a conversion: outputs that appear whole or not at all, and where a source's weights are."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from llama_scale.checkpoint.manifest import MANIFEST, newest_complete
from llama_scale.errors import CheckpointError, ConvertError

ORIGIN = "hf"
"""Subfolder of an imported checkpoint that keeps the Hugging Face folder's config and tokenizer for the way back."""

REPORT = "report.json"

Proof = Callable[[Path], dict[str, Any]]
"""Compares the finished, not yet visible folder with the checkpoint; returns figures for the report, or raises."""

_KEPT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_KEPT_PREFIXES = ("config", "generation_config", "tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges")
_CONFIG_PREFIXES = ("config", "generation_config")
_MORE_TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer with chat templates beside the default one, as transformers writes it."""
_MOST_LINKS = 40


class Progress(Protocol):
    """Be told how far a long conversion is."""

    def start(self, label: str, total: int) -> None:
        """Begin a phase of so many bytes."""

    def advance(self, amount: int) -> None:
        """Report bytes done."""


class Silence:
    """Report nothing."""

    def start(self, label: str, total: int) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""


def check_target(target: Path) -> None:
    """Refuse to write over something.

    Raises:
        ConvertError: The folder exists and is not empty, is a file, or its parent cannot be made.
    """
    if target.is_dir():
        if any(target.iterdir()):
            raise ConvertError(f"{target} exists and is not empty; give a new folder, or remove it first")
    elif target.exists() or target.is_symlink():
        raise ConvertError(f"{target} exists and is no folder; give the name of a new folder")


@contextlib.contextmanager
def checkpoint_faults() -> Iterator[None]:
    """Let what is wrong with a checkpoint end a conversion as its own error.

    Raises:
        ConvertError: In place of a ``CheckpointError``.
    """
    try:
        yield
    except CheckpointError as error:
        raise ConvertError(str(error)) from error


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; it is removed unless the body renames it or ends well.

    When the body ends without an error and the temporary folder is still there, it becomes ``target``.

    Raises:
        ConvertError: ``target`` exists, or nothing can be written there.
    """
    check_target(target)
    # Absolute, because "x" and "x/." have other parents.
    target = Path(os.path.abspath(target))  # noqa: PTH100 - Path.absolute keeps ".."
    tmp = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    new_parents = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tmp.mkdir()
    except OSError as error:
        raise ConvertError(f"cannot write to {target.parent}: {error.strerror}; check its permissions") from error
    try:
        yield tmp
        if tmp.exists():
            tmp.rename(target)
    except OSError as error:
        raise ConvertError(f"cannot write {target}: {error.strerror or error}; nothing was left there") from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        for parent in new_parents:  # those that are empty: the target is not there
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_space(folder: Path, *, needed: int) -> None:
    """Refuse to start writing into an existing folder what cannot fit.

    Raises:
        ConvertError: Its file system has less than ``needed`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConvertError(f"{needed:,} bytes are needed in {folder.parent}, {free:,} are free; free some space")


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None if there is no such file.

    Raises:
        ConvertError: The file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConvertError(f"{path} holds {type(value).__name__}, not an object")
    return value


def copy_small_files(source: Path, target: Path, *, configs: bool) -> None:
    """Copy a Hugging Face folder's tokenizer and chat templates; no weights, no indexes, no code.

    Args:
        source: The folder.
        target: Existing folder.
        configs: Copy config.json and generation_config.json too.
    """
    for path in sorted(source.iterdir()):
        kept = path.suffix in _KEPT_SUFFIXES and path.name.startswith(_KEPT_PREFIXES)
        if path.is_file() and kept and (configs or not path.name.startswith(_CONFIG_PREFIXES)):
            shutil.copyfile(path, target / path.name)
    copy_templates(source, target)


def copy_templates(source: Path, target: Path) -> None:
    """Copy the chat templates that are files of their own."""
    for pattern in ("chat_template*", f"{_MORE_TEMPLATES}/*.jinja"):
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                place = target / path.relative_to(source)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a file that transformers makes a tokenizer of."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def keep_origin(source: Path, checkpoint: Path) -> None:
    """Copy a Hugging Face folder's config and tokenizer into a checkpoint that is made from it."""
    origin = checkpoint / ORIGIN
    origin.mkdir()
    copy_small_files(source, origin, configs=True)


_DEEPSPEED_FILES = (
    "*mp_rank_*_model_states.pt",
    "*_optim_states.pt",
    "layer_*-model_*-model_states.pt",
    "zero/*/fp32.pt",
)
"""What DeepSpeed's own checkpoints consist of: ZeRO, ZeRO's optimizer state, pipeline, universal."""


def deepspeed_folder(path: Path) -> Path | None:
    """Return the folder in or right below ``path`` that DeepSpeed itself has written, if any."""
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    return next((f for f in folders if any(next(f.glob(pattern), None) for pattern in _DEEPSPEED_FILES)), None)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a user means: the folder itself, or the newest complete one of a run.

    Raises:
        ConvertError: The path is neither a checkpoint nor a run with one.
    """
    if (path / MANIFEST).is_file():
        return path
    if not path.is_dir():
        raise ConvertError(
            f"{path} does not exist; give the path of a run folder (a name's beginning is not enough here) or of a "
            "checkpoint, e.g. runs/NAME/checkpoints/step-00000100"
        )
    for folder in (path / "checkpoints", path):
        newest = newest_complete(folder)
        if newest is not None:
            return newest
    if (path / "checkpoints").is_dir():
        raise ConvertError(f"the run {path} has no complete checkpoint yet; let it save one (`llama-scale stop` saves)")
    if (path / "config.json").is_file():
        raise ConvertError(
            f"{path} is a Hugging Face folder, no checkpoint; `llama-scale convert import` makes one of it"
        )
    foreign = deepspeed_folder(path)
    if foreign is not None:
        raise ConvertError(
            f"{foreign} is a checkpoint in DeepSpeed's own format; runs of llama-scale save another one under every "
            f"engine. If it holds a model of llama-scale, `llama-scale convert import --from {path} --spec SPEC "
            "--to CHECKPOINT` reads it; of any other model, make a Hugging Face folder with the script that trained it"
        )
    raise ConvertError(f"{path} is neither a run folder nor a checkpoint: it has no manifest.json and no checkpoints/")


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder in whose ``checkpoints/`` a checkpoint lies, or None for a checkpoint of its own.

    Symbolic links are followed one at a time, because both the path that is given and the run's ``checkpoints`` may be
    one: only the path before the last link leads back to the run.
    """
    place: Path | None = Path(os.path.abspath(checkpoint))  # noqa: PTH100 - Path.absolute keeps ".."
    for _ in range(_MOST_LINKS):
        if place is None:
            return None
        run = place.parent.parent
        if place.parent.name == "checkpoints" and (run / "spec.yaml").is_file():
            return run
        place = _one_link_followed(place)
    return None


def _one_link_followed(path: Path) -> Path | None:
    """Return the path with its last symbolic link replaced by what it points to, or None if it has no link."""
    for part in (path, *path.parents):
        if part.is_symlink():
            target = part.parent / part.readlink() / path.relative_to(part)
            return Path(os.path.abspath(target))  # noqa: PTH100 - Path.absolute keeps ".."
    return None
