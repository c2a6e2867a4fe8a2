"""Plain scalars of the YAML 1.2 core schema: what an unquoted word in a spec means.

PyYAML resolves by YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``1:30`` is 90 and ``2024-01-01`` a date. Here
``1e-4`` is a number and the others are text, as in JSON and in YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_MAX_DIGITS = 300
"""Longer integers are refused: no field needs them, and Python's own conversion of long ones is quadratic."""

_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip


def parse_scalar(text: str) -> Scalar:
    """Return the value of an unquoted scalar.

    Raises:
        ValueError: for infinity, NaN, a float beyond the range of float64 and an integer of more than 300 digits; the
            text names the rule. No field of a spec takes such a value.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789":
        return text
    if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return _bounded(text, int(text, 0) if len(text) <= _MAX_DIGITS else None)
    if _INT.fullmatch(text):
        return _bounded(text, int(text) if len(text) <= _MAX_DIGITS else None)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"{text[:40]} is larger than a float64 can hold")
        return value
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a number that a spec can use; put it in quotes if text is meant")
    return text


def _bounded(text: str, value: int | None) -> int:
    if value is None:
        raise ValueError(f"{text[:20]}... is an integer of more than {_MAX_DIGITS} digits")
    return value
