"""Axes: round numbers for ticks, and how values become places."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis.

    Args:
        low: Value at the start.
        high: Value at the end.
        start: Place of ``low``.
        end: Place of ``high``.
        ticks: Values with a mark, ascending.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value lies; values outside lie at the nearer end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def make_axis(low: float, high: float, *, start: float, end: float, count: int = 5, zero: bool = False) -> Axis:
    """Return an axis over at least [low, high] that begins and ends at round numbers.

    Args:
        low: Least value.
        high: Greatest value; equal to ``low`` is allowed.
        start: Place of the least value.
        end: Place of the greatest.
        count: Ticks wanted, about.
        zero: Begin at zero.
    """
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    # Below the least normal number there are no round steps; such a difference is no difference.
    if not high - low > max(1e-9 * max(abs(low), abs(high)), 1e-300):
        spread = abs(high) * 0.1 or 1.0
        low, high = (low, high + spread) if zero else (low - spread, high + spread)
    step = round_step((high - low) / max(1, count))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * n for n in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], start=start, end=end, ticks=ticks)


def round_step(step: float) -> float:
    """Return the least of 1, 2, 2.5, 5 times a power of ten that is no less than ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in _STEPS if power * factor >= step * (1 - 1e-9))


def number(value: float) -> str:
    """Word a number shortly: 0.025, 1.5, 12k, 3.2M."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size * 0.99995:
            return f"{value / size:.4g}{prefix}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def seconds(value: float) -> str:
    """Word a duration: 850 us, 12.5 ms, 3.2 s."""
    if value == 0:
        return "0 s"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value / 1e-6:.4g} us"


def gibibytes(value: float) -> str:
    """Word a number of bytes in the unit that suits it."""
    size = byte_unit(value)
    if size == 1:
        return f"{value:.0f} B"
    return f"{value / size:,.4g} {_BYTE_UNITS[size]}"


def byte_unit(value: float) -> int:
    """Return the largest of 1, 1024, 1024^2 and 1024^3 bytes that is no more than the value."""
    return next((size for size in _BYTE_UNITS if abs(value) >= size), 1)


_BYTE_UNITS = {1 << 30: "GiB", 1 << 20: "MiB", 1 << 10: "KiB"}
