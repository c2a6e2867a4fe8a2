"""The errors a user can cause, each with the exit code that the command line gives it.

``cli/app.py`` alone turns them into exit codes; everything else raises them. A message has three parts: what is
wrong with the value shown, the rule, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PREEMPTED_EXIT = 75
"""Exit status of a worker or launch that stopped on request after saving a checkpoint (sysexits' EX_TEMPFAIL)."""


class LlamaScaleError(Exception):
    """Be the root of all errors that are the user's to mend; ``exit_code`` is the process's status."""

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Describe one fault in an input file.

    Args:
        path: Field path from the top of the document, e.g. ``("parallel", "tensor")``.
        message: What is wrong, with the value shown, and the rule it breaks.
        hint: What to do: the nearest valid values, the key that was probably meant.
        code: Short stable name of the rule, for machines, e.g. ``"unknown-key"`` or ``"heads-divisible"``.
        file: The file as the user named it, or None for a value given by ``--set``.
        line: 1-based, None when unknown.
        column: 1-based, None when unknown.
    """

    path: tuple[str | int, ...]
    message: str
    hint: str = ""
    code: str = "invalid"
    file: str | None = None
    line: int | None = None
    column: int | None = None

    @property
    def dotted(self) -> str:
        """Join the field path as a user writes it: ``data.blend[0].path``."""
        text = ""
        for part in self.path:
            if isinstance(part, int):
                text += f"[{part}]"
            else:
                text += f".{part}" if text else part
        return text

    def __str__(self) -> str:
        where = ":".join(str(x) for x in (self.file, self.line, self.column) if x is not None)
        head = ": ".join(x for x in (where, self.dotted) if x)
        tail = f"; {self.hint}" if self.hint else ""
        return f"{head}: {self.message}{tail}" if head else f"{self.message}{tail}"


PLUGIN_CODE = "plugin"
"""Code of problems that are no fault of the spec: a plugin that it uses is broken, clashes or has another version."""


class SpecError(LlamaScaleError):
    """Report every fault of a spec (or of a plan that does not fit) at once.

    ``exit_code`` is 3, or 4 if all that is wrong are plugins.
    """

    exit_code = 3

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        if isinstance(problems, str):
            problems = [Problem(path=(), message=problems)]
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.exit_code = status_of(self.problems) or SpecError.exit_code
        super().__init__("\n".join(str(p) for p in self.problems))


def status_of(problems: Sequence[Problem]) -> int:
    """Return the exit status that problems of specs have: 0 for none, 4 if all of them are plugins' faults, else 3."""
    if not problems:
        return 0
    return PluginError.exit_code if all(p.code == PLUGIN_CODE for p in problems) else SpecError.exit_code


class PluginError(LlamaScaleError):
    """Report an extension that is missing, clashes, is broken or was made for another API version."""

    exit_code = 4


class LaunchError(LlamaScaleError):
    """Report a run, its data or its evaluation that could not start or did not end well."""

    exit_code = 5


class CheckpointError(LaunchError):
    """Report a checkpoint that is incomplete, damaged or does not fit the model it is loaded into."""


class DataError(LaunchError):
    """Report text or token files that are missing, damaged or do not fit the run."""


class ConvertError(LlamaScaleError):
    """Report a conversion that could not be done or whose proof failed."""

    exit_code = 6


class ReportError(LlamaScaleError):
    """Report a drawing or a report that could not be made or written."""

    exit_code = 5
