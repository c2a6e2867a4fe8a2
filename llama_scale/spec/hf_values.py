"""Typed values of a Hugging Face config.json, by the rules that transformers 5 applies to a ``LlamaConfig``.

An absent key has transformers' default; null is a value, and only keys that may be null there may be null here.
Integers and floats are told apart, as transformers does: it refuses ``rms_norm_eps: 1``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_SHOWN = 60


def shown(value: object) -> str:
    """Return a value as an error message shows it: JSON's words, and no more than one line of it."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class HfValues:
    """Take typed values out of a JSON object and note what is wrong with the others.

    Args:
        table: The object.
        prefix: Where it is in config.json, e.g. ``rope_scaling.``.

    Attributes:
        faults: What was wrong so far, a sentence each.
    """

    def __init__(self, table: Mapping[str, Any], prefix: str = "") -> None:
        self.table = table
        self.prefix = prefix
        self.faults: list[str] = []

    def count(self, key: str, default: int | None = None, *, most: int, null: bool = False) -> int:
        """Return an integer of 1 to ``most``; 1 after a fault was noted.

        Args:
            key: The key.
            default: What an absent key stands for; None: it has to be there.
            most: Larger numbers are refused: no LLaMA has them, and what is made from them would fill the memory.
            null: null stands for the default too.
        """
        value = self.table.get(key)
        if default is not None and (key not in self.table or (null and value is None)):
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.note(key, "a positive integer")
            return 1
        if value > most:
            self.faults.append(f"{self.prefix}{key} is {shown(value)}, more than the {most:,} that are possible here")
            return 1
        return value

    def fraction(self, key: str, default: float, *, most: float = math.inf) -> float:
        """Return a positive float of at most ``most``; integers are refused."""
        value = self.table.get(key, default)
        if isinstance(value, float) and 0 < value <= most and math.isfinite(value):
            return value
        limit = "" if most == math.inf else f" of at most {most:g}"
        hint = f"; write {value}.0" if isinstance(value, int) and not isinstance(value, bool) and value > 0 else ""
        self.note(key, f"a positive number with a decimal point{limit}{hint}")
        return 1.0

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number, integer or not; 1.0 after a fault was noted."""
        value = self.table.get(key) if default is None else self.table.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        self.note(key, "a positive number")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.table.get(key, default)
        if isinstance(value, bool):
            return value
        self.note(key, "true or false")
        return default

    def note(self, key: str, wanted: str) -> None:
        """Note that a key is missing or has another value than it may have."""
        where = f"{self.prefix}{key}"
        self.faults.append(
            f"{where} is {shown(self.table[key])}, not {wanted}" if key in self.table else f"{where} is missing"
        )
