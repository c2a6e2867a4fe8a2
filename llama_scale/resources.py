"""Find the data folders ``launch/`` and ``configs/`` in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
