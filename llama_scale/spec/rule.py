"""What a cross-section rule is: a check that runs when the sections it reads are whole.

Rules tell forms apart by ``kind`` and read plain fields only, so that they run on pydantic's models and on the light
views of ``quick`` alike; no file of rules imports pydantic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_scale.errors import Problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        needs: Sections that ``check`` reads; it is not called when one of them has problems of its own.
        check: Yields a problem for each way in which the (resolved) spec breaks the rule.
    """

    needs: tuple[str, ...]
    check: Callable[[RunSpec], Iterator[Problem]]


def problem(path: str, message: str, *, hint: str, code: str) -> Problem:
    """Build a problem at a dotted path (no indexes)."""
    return Problem(path=tuple(path.split(".")), message=message, hint=hint, code=code)
