"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_scale.errors import DataError


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission while writing ``path`` into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place with --output"
        ) from error


def scratch_path(path: Path) -> Path:
    """Return an unused temporary name in the folder of ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file: temporary name, fsync, rename. Its folder is made if need be.

    Raises:
        DataError: It cannot be written; an older file of that name is then unchanged.
    """
    scratch = scratch_path(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
