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
from pathlib import Path

from llama_scale.checkpoint.manifest import file_sha256, load_manifest, verify_files
from llama_scale.errors import CheckpointError
from llama_scale.spec.start_folder import weight_files

BASES = ".bases"
_READ = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Endings of the files that an import reads: config, tokenizer and chat template, weights."""
_HASHED_AT_ONCE = 4


def bases_beside(run: Path) -> Path:
    """Return the folder of imported weights that a run folder uses."""
    return run.absolute().parent / BASES


def source_key(source: Path) -> str:
    """Return the name that the imported weights of a Hugging Face folder have; only looks at its files' sizes and times.

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


def is_whole(folder: Path) -> bool:
    """Tell whether imported weights are there, every file of its size; their ranks compare the hashes."""
    try:
        verify_files(folder, manifest=load_manifest(folder), hashes=False)
    except CheckpointError:
        return False
    return True


@contextmanager
def locked(bases: Path, key: str) -> Iterator[None]:
    """Hold a key's lock, so that one process at a time imports or removes its weights; the kernel ends it with us.

    Raises:
        OSError: The folder cannot be written, or its file system has no locks.
    """
    bases.mkdir(parents=True, exist_ok=True)
    with (bases / f".{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
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
