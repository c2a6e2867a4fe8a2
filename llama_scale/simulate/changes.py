"""What differs between a spec and its simulation: found by comparing the two, so that nothing is left unsaid."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_scale.columns import columns

_WIDTH = 18
"""Most characters of a value in the table."""
_TABLE = 78
"""Its width; whoever shows it indents it by two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field that the simulation does not take from the spec.

    Args:
        field: Dotted path, e.g. ``adapters[0].options.rank``.
        before: Value of the spec; None where it has none.
        after: Value of the simulation.
        why: Reason, where it is not plain smallness.
    """

    field: str
    before: Any
    after: Any
    why: str = ""


def compare(before: Mapping[str, Any], after: Mapping[str, Any], reasons: Mapping[str, str]) -> tuple[Change, ...]:
    """Return every difference of two specs as plain data, in the order of the first.

    Args:
        before: The spec.
        after: The simulated one.
        reasons: Path or beginning of a path -> why; the longest that fits is taken.
    """
    return tuple(
        Change(field=path, before=old, after=new, why=_reason(path, reasons))
        for path, old, new in _differences("", before, after)
    )


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("kind") == new.get("kind"):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif _are_sections(old) and _are_sections(new) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{path}[{index}]", one, other)
    elif old != new:
        yield path, old, new


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _reason(path: str, reasons: Mapping[str, str]) -> str:
    fitting = [key for key in reasons if path == key or path.startswith((f"{key}.", f"{key}["))]
    return reasons[max(fitting, key=len)] if fitting else ""


def table(changes: Iterable[Change]) -> str:
    """Return the changes as aligned text: field, spec value, simulated value, reason."""
    rows = [("field", "spec", "simulated", "")]
    rows += [(change.field, show(change.before), show(change.after), change.why) for change in changes]
    return columns(rows, width=_TABLE)


def show(value: Any) -> str:
    """Return a value as the spec writes it, cut to the table's width; a section by its kind."""
    if value is None:
        return "-"
    if isinstance(value, Mapping) and "kind" in value:
        return str(value["kind"])
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _WIDTH:
        return text
    return f"...{text[3 - _WIDTH :]}" if text.startswith("/") else f"{text[: _WIDTH - 3]}..."
