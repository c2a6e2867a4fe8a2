"""Nearest valid values: what a message proposes when a number breaks a rule."""

from __future__ import annotations

from collections.abc import Sequence


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    small = [d for d in range(1, min(number, 1 << 16) + 1) if d * d <= number and number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def nearest(asked: int, candidates: Sequence[int], *, count: int = 2) -> list[int]:
    """Return the candidates nearest to what was asked by ratio, ascending."""
    ranked = sorted(candidates, key=lambda c: (max(c, asked) / min(c, asked), c))
    return sorted(ranked[:count])


def multiples_around(asked: int, step: int) -> list[int]:
    """Return the multiples of ``step`` just below and above a number that is none; only positive ones."""
    low = asked // step * step
    return [low, low + step] if low else [step]


def either(values: Sequence[object]) -> str:
    """Write values as "a, b or c"."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def some(values: Sequence[object], *, most: int = 8) -> str:
    """Write values as "a, b, c and 5 more"."""
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def suggest(word: object, choices: Sequence[str]) -> str:
    """Return "did you mean ...?" where a choice is near, else the list of choices."""
    from difflib import get_close_matches  # lazy: only for messages

    near = get_close_matches(str(word).lower(), [c.lower() for c in choices], n=1, cutoff=0.6)
    for choice in choices:
        if near and choice.lower() == near[0]:
            return f"did you mean {choice!r}?"
    return f"use {either(choices)}" if choices else "remove it"
