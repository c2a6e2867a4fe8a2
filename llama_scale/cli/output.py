"""Where the command line writes: stdout is data, stderr is talk."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def emit(text: str) -> None:
    """Write data to stdout, one line end after it."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """Write a value as JSON to stdout; JSON has no NaN and no infinity, so that these are null (a loss of NaN)."""
    emit(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    """Write talk (progress, warnings, errors, hints) to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
