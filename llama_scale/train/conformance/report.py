"""Collecting checks: a failed one does not stop those that do not need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llama_scale.extensions.conformance import Check

T = TypeVar("T")


class Failed(Exception):
    """A requirement is not met; the text says how."""


class NotApplicable(Exception):
    """A requirement has no meaning for this plugin; the text says why."""


class Report:
    """The checks of one plugin so far."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def check(self, name: str, action: Callable[[], T]) -> T | None:
        """Make one check.

        Args:
            name: What is required.
            action: Raises Failed or NotApplicable; what it returns is shown if it is a text.

        Returns:
            What ``action`` returned; None if the check did not pass.
        """
        try:
            found = action()
        except NotApplicable as reason:
            self.checks.append(Check(name=name, status="not applicable", detail=str(reason)))
            return None
        except Failed as reason:
            self.checks.append(Check(name=name, status="failed", detail=str(reason)))
            return None
        except Exception as error:  # whatever a plugin raises is what it does wrong
            self.checks.append(Check(name=name, status="failed", detail=describe(error)))
            return None
        self.checks.append(Check(name=name, status="passed", detail=found if isinstance(found, str) else ""))
        return found


def describe(error: BaseException) -> str:
    """Return an exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
