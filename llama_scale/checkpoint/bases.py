"""Imported weights that runs of one folder share: ``RUNS_DIR/.bases/KEY``. No torch.

The key follows from the source's path and from name, size and times of its files, so a folder that changes gets another
one. An import holds the key's lock, writes under a temporary name and renames: a folder that has its name is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_scale.checkpoint.manifest import file_sha256, load_manifest, verify_files
from llama_scale.errors import CheckpointError
from llama_scale.spec.start_folder import weight_files

BASES = ".bases"
_READ = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Endings of the files that an import reads: config, tokenizer and chat template, weights."""
_HASHED_AT_ONCE = 4


def bases_in(runs_dir: Path) -> Path:
    """Return the folder of imported weights that the runs of a folder share."""
    return runs_dir.absolute() / BASES


def source_key(source: Path) -> str:
    """Return the name of a Hugging Face folder's imported weights, from its files' sizes and times alone.

    Raises:
        OSError: The folder cannot be read.
    """
    files = []
    for path in sorted(source.iterdir()):
        if path.suffix in _READ and path.is_file():
            facts = path.stat()
            # ctime too: a copy or an editor may set mtime back, and then only ctime tells.
            files.append([path.name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns])
    text = json.dumps([os.fsdecode(source.absolute()), files])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def source_digest(source: Path) -> str:
    """Return the digest of a Hugging Face folder's config and weights.

    In the folder, ``sha256sum config.json *.safetensors | sha256sum`` prints the same if it has no other such files.

    Raises:
        OSError: A file cannot be read.
        FolderFault: It has no weights.
    """
    files = sorted([source / "config.json", *weight_files(source)], key=lambda path: path.name)
    with ThreadPoolExecutor(_HASHED_AT_ONCE, thread_name_prefix="hash") as pool:
        lines = [f"{digest}  {path.name}\n" for path, digest in zip(files, pool.map(file_sha256, files), strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedBase:
    """Imported weights that are there.

    Args:
        folder: A checkpoint folder of them.
        digest: ``source_digest`` of where they came from.
    """

    folder: Path
    digest: str


def find_imported(bases: Path, key: str) -> ImportedBase | None:
    """Return the imported weights of a key, every file of its size; None if they are not there or not whole.

    Hashes are compared by the ranks that load them.
    """
    folder = bases / key
    try:
        verify_files(folder, manifest=load_manifest(folder), hashes=False)
        digest = json.loads((folder / "report.json").read_bytes())["source_digest"]
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        return None
    return ImportedBase(folder=folder, digest=digest) if isinstance(digest, str) else None


class Busy(Exception):
    """Another process holds a key's lock."""


@contextmanager
def locked(bases: Path, key: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a key's lock, so that one process at a time imports or removes its weights; the kernel ends it with us.

    Raises:
        Busy: Another process holds it; only without ``wait``.
        OSError: The folder cannot be written, or its file system has no locks.
    """
    bases.mkdir(parents=True, exist_ok=True)
    with (bases / f".{key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        yield


def remove_unfinished(bases: Path, key: str) -> None:
    """Remove what killed imports and removals of a key left; the caller holds its lock."""
    for folder in bases.glob(f".{key}.tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove(bases: Path, key: str) -> None:
    """Remove the imported weights of a key; the caller holds its lock.

    Raises:
        OSError: They cannot be removed.
    """
    gone = bases / f".{key}.tmp-removed"
    shutil.rmtree(gone, ignore_errors=True)
    if (bases / key).exists():
        (bases / key).rename(gone)  # at once, so that nobody meets half of it
    shutil.rmtree(gone, ignore_errors=True)
