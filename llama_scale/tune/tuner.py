"""Measure the best predicted layouts, correct the predictions by the results, go on while another may be better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_scale.plan.search import Ranked
from llama_scale.plan.search_space import describe
from llama_scale.tune.correction import Correction, fit_correction, layout_cost
from llama_scale.tune.records import Trial, Trials, layout_key

Measure = Callable[[Mapping[str, Any]], Trial]
"""Launches a layout once."""

_FINALISTS = 8
_CLOSE = 1.3
"""Layouts within 30% of the best may be the best: single launches differ that much on a busy machine."""
_EQUAL = 1.03
"""Layouts within 3% of the best are not told apart, and stay in the comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """One layout after tuning.

    Args:
        ranked: Its prediction.
        sections: Its sections as they are written in a spec.
        corrected_s: Corrected prediction of a step.
        trial: What was measured; None if it was not launched.
    """

    ranked: Ranked
    sections: Mapping[str, Any]
    corrected_s: float
    trial: Trial | None

    @property
    def step_s(self) -> float | None:
        """Measured step time; None without one."""
        return None if self.trial is None else self.trial.step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What tuning found.

    Args:
        layouts: Measured ones by their step time, then the others by their corrected prediction.
        correction: Factors of this machine.
        launched: Launches made now, not read from what was kept.
    """

    layouts: tuple[Tuned, ...]
    correction: Correction
    launched: int

    @property
    def best(self) -> Tuned | None:
        """The fastest measured layout; None if none ran."""
        first = self.layouts[0] if self.layouts else None
        return first if first is not None and first.step_s is not None else None


class Tuner:
    """Decide which layout is launched next.

    Args:
        ranked: Layouts that fit, best predicted first.
        trials: What is known already.
        measure: Launches a layout.
        least: Layouts to launch at least.
        most: Layouts to launch at most.
        repeats: Launches of the layouts that are compared to the end.
    """

    def __init__(
        self, ranked: Sequence[Ranked], *, trials: Trials, measure: Measure, least: int, most: int, repeats: int
    ) -> None:
        self._layouts = [(one, describe(one.candidate)) for one in ranked]
        self._trials, self._measure = trials, measure
        self._least, self._most, self._repeats = least, max(least, most), repeats
        self._launched = 0

    def run(self) -> Outcome:
        """Launch layouts until no other is likely to be better, then the best ones again, in turns."""
        while (sections := self._next()) is not None:
            self._launch(sections)
        contenders = self._contenders()
        for turn in range(1, self._repeats):
            # Every other turn goes backwards, so that a machine that becomes slower or faster favours nobody.
            for one in contenders[:: 1 if turn % 2 else -1]:
                if one.trial is not None and len(one.trial.seconds) <= turn:
                    self._launch(one.sections)
            contenders = self._better_half(contenders)
        return self.outcome()

    def outcome(self) -> Outcome:
        """Return what is known now."""
        correction = self._correction()
        layouts = [
            Tuned(
                ranked=one,
                sections=sections,
                corrected_s=correction.seconds(layout_cost(one)),
                trial=self._trials.get(layout_key(sections)),
            )
            for one, sections in self._layouts
        ]
        layouts.sort(key=lambda one: (one.step_s is None, one.trial is not None, one.step_s or one.corrected_s))
        return Outcome(layouts=tuple(layouts), correction=correction, launched=self._launched)

    def _launch(self, sections: Mapping[str, Any]) -> None:
        self._trials.add(self._measure(sections))
        self._launched += 1

    def _correction(self) -> Correction:
        return fit_correction([(layout_cost(one), seconds) for one, seconds in self._measured()])

    def _measured(self) -> Iterator[tuple[Ranked, float]]:
        for one, sections in self._layouts:
            trial = self._trials.get(layout_key(sections))
            if trial is not None and trial.step_s is not None:
                yield one, trial.step_s

    def _next(self) -> Mapping[str, Any] | None:
        """Return the layout to launch next; None when enough are known.

        The first ones differ in engine or degrees, so that every kind of cost is seen; then comes the best corrected
        prediction, as long as it is within its error of the best measurement.
        """
        known = [trial for _, sections in self._layouts if (trial := self._trials.get(layout_key(sections)))]
        left = [(one, s) for one, s in self._layouts if self._trials.get(layout_key(s)) is None]
        if not left or len(known) >= self._most:
            return None
        correction = self._correction()
        left.sort(key=lambda pair: correction.seconds(layout_cost(pair[0])))
        if len(known) < self._least:
            seen = {_family(trial.sections) for trial in known}
            return next((s for _, s in left if _family(s) not in seen), left[0][1])
        best = min((seconds for _, seconds in self._measured()), default=None)
        one, sections = left[0]
        hopeful = best is None or correction.seconds(layout_cost(one)) * (1 - correction.spread) < best
        return sections if hopeful else None

    def _contenders(self) -> list[Tuned]:
        """Return the layouts of which any may be the best, fastest first."""
        measured = [one for one in self.outcome().layouts if one.step_s is not None][:_FINALISTS]
        return [one for one in measured if _time(one) <= _CLOSE * _time(measured[0])]

    def _better_half(self, contenders: Sequence[Tuned]) -> list[Tuned]:
        """Return the faster half of layouts by all their launches, and what cannot be told from the best."""
        keys = {layout_key(one.sections) for one in contenders}
        ordered = [one for one in self.outcome().layouts if layout_key(one.sections) in keys and one.step_s is not None]
        half = -(-len(ordered) // 2)
        return [one for place, one in enumerate(ordered) if place < half or _time(one) <= _EQUAL * _time(ordered[0])]


def _time(one: Tuned) -> float:
    assert one.step_s is not None, "only measured layouts are compared"
    return one.step_s


def _family(sections: Mapping[str, Any]) -> tuple[Any, ...]:
    parallel, engine = sections["parallel"], sections["engine"]
    sharded = engine.get("zero", engine.get("distributed_optimizer"))
    return (engine["kind"], sharded, parallel["data"], parallel["tensor"], parallel["pipeline"])
