"""Where the command line writes: stdout is data, stderr is talk."""

from __future__ import annotations

import json
import sys
from typing import Any


def emit(text: str) -> None:
    """Write data to stdout, one line end after it."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Write talk (progress, warnings, errors, hints) to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
