"""Tell which libraries of ``llama-scale[train]`` are missing here; nothing of them is imported."""

from __future__ import annotations

import importlib.util


def missing_libraries(*names: str) -> list[str]:
    """Return those of these top-level packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def missing_message(needs: str, *names: str) -> str | None:
    """Return the sentence that refuses what cannot be done without these packages; None if all are installed.

    Args:
        needs: Who needs them, with the verb: ``the workers need``.
        names: Top-level packages.
    """
    missing = missing_libraries(*names)
    return f"{needs} {', '.join(missing)}, not installed here: pip install 'llama-scale[train]'" if missing else None
