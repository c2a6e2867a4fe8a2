"""Deal the samples of a run out to the parts of a data blend, deterministically."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

_MAX_PERIOD = 1 << 18


class Blend:
    """Say which part sample k belongs to and how many samples of that part came before it.

    The choice is earliest-deadline-first over the windows in which a part with share f must get its j-th sample,
    ``[floor(j / f), ceil((j + 1) / f))`` (Baruah et al., Proportionate progress, 1996): after any number n of samples
    each part has had fewer than one sample more or less than ``n * f``. Shares are fractions with a common
    denominator, and the sequence repeats after that many samples, so any k is answered from a table of one period.

    Args:
        weights: Positive weights, in any unit.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._shares = _integer_shares(weights)
        self.period = sum(self._shares)
        self._parts: np.ndarray | None = None
        self._before: np.ndarray | None = None

    def locate(self, sample: int) -> tuple[int, int]:
        """Return (part, index of the sample within that part's own sequence)."""
        if len(self._shares) == 1:
            return 0, sample
        if self._parts is None or self._before is None:
            self._parts, self._before = _deal(self._shares)
        rounds, position = divmod(sample, self.period)
        part = int(self._parts[position])
        return part, rounds * self._shares[part] + int(self._before[position])


def blend_once(weights: Sequence[float], sizes: Sequence[int], *, limit: int) -> list[tuple[int, int]]:
    """Return (part, number in it) of the first samples of a blend, each at most once.

    They are dealt out by weight, as ``Blend`` does. As soon as it is the turn of a part that is used up, those that are
    left are dealt out by their weights from there on.

    Args:
        weights: Of each part.
        sizes: Samples of each part.
        limit: Most samples.
    """
    rows: list[tuple[int, int]] = []
    taken = [0] * len(sizes)
    left = list(range(len(sizes)))
    while left and len(rows) < limit:
        blend = Blend([weights[part] for part in left])
        for k in itertools.count():
            part = left[blend.locate(k)[0]]
            if taken[part] == sizes[part]:
                left.remove(part)
                break
            rows.append((part, taken[part]))
            taken[part] += 1
            if len(rows) == limit:
                break
    return rows


def _integer_shares(weights: Sequence[float]) -> list[int]:
    """Return integers in the proportion of the weights.

    Weights whose exact proportion needs a period of more than 2**18 are rounded to multiples of 2**-18 of the whole
    (at least one): a share is then off by less than 4e-6.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(x.denominator for x in exact))
    whole = [int(x * scale) for x in exact]
    divisor = math.gcd(*whole)
    whole = [x // divisor for x in whole]
    total = sum(whole)
    if total <= _MAX_PERIOD:
        return whole
    return [max(1, round(x * _MAX_PERIOD / total)) for x in whole]


def _deal(shares: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each position of one period, the part and the number of that part's samples before it."""
    period = sum(shares)
    waiting = [(0, part, 0) for part in range(len(shares))]  # (release, part, j)
    ready: list[tuple[int, int, int]] = []  # (deadline, part, j)
    parts = np.empty(period, np.int32)
    before = np.empty(period, np.int64)
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            _, part, j = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(j + 1) * period // shares[part]), part, j))
        _, part, j = heapq.heappop(ready)
        parts[position], before[position] = part, j
        if j + 1 < shares[part]:
            heapq.heappush(waiting, ((j + 1) * period // shares[part], part, j + 1))
    return parts, before
