"""Find the data folders ``launch/`` and ``configs/`` in a checkout and in an installed wheel alike."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from llama_scale import __version__

_PACKAGE = Path(__file__).resolve().parent


def data_dir(name: Literal["launch", "configs"]) -> Path:
    """Return the folder that holds the shipped templates or specs.

    The wheel carries them as ``llama_scale/_launch`` and ``llama_scale/_configs``; a checkout (also an editable
    install) has them beside the package.

    Raises:
        FileNotFoundError: if the installation holds neither.
    """
    for candidate in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"llama-scale's data folder {name}/ is missing from {_PACKAGE}; reinstall the package")


def package_digest() -> str:
    """Return the version and a digest of the package's code, ``0.1.0+1f2e3d4c5b6a``: equal where the same code runs."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:12]}"
