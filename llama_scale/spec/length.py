"""Length of a run whose rows have been counted, and of one whose length does not matter."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from llama_scale.errors import SpecError

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


def steps_of_epochs(epochs: float, *, rows: int, global_batch: int, step: int = 0, samples: int = 0) -> int:
    """Return the steps at whose end a run has read ``epochs x rows`` rows, the last step's batch rounded up.

    >>> steps_of_epochs(3, rows=1204, global_batch=32)
    113

    Args:
        epochs: Passes over all rows; as exact as it is written: 1.1 x 50 are 55 rows.
        rows: All rows.
        global_batch: Rows of a step.
        step: Steps done already,
        samples: and the rows that they have read, perhaps with another batch.
    """
    left = Fraction(str(epochs)) * rows - samples
    return step + -(-left // global_batch)


def with_steps(spec: RunSpec, steps: int) -> RunSpec:
    """Return a spec with this many steps in place of epochs.

    Raises:
        SpecError: A rule on the schedule does not allow so few.
    """
    from llama_scale.spec.run_rules import RULES  # lazy: only specs with epochs are checked again

    found = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": steps, "epochs": None})})
    problems = [problem for rule in RULES for problem in rule.check(found)]
    if problems:
        raise SpecError(problems)
    return found


def any_length(spec: RunSpec) -> RunSpec:
    """Return a spec that has a plan, for what does not depend on its length: one step in place of epochs."""
    if spec.train.epochs is None:
        return spec
    return spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 1, "epochs": None})})
