"""Run llama-scale's own commands as a user does, each with a log of what it said."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 300.0
"""No command of a simulation takes so long, unless it hangs."""
_END_S = 60.0
"""What a command gets to end in after SIGTERM; a launch saves then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended.

    Args:
        status: Exit status; negative for a signal.
        out: Its stdout.
        log: File with its stderr.
        late: It was ended because it took too long.
    """

    status: int
    out: str
    log: Path
    late: bool = False

    @property
    def error(self) -> str:
        """What it said last: the lines from ``error:`` on, or the last one."""
        if self.late:
            return f"did not end within {_TIMEOUT_S:g} s"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        start = next((n for n in reversed(range(len(lines))) if lines[n].startswith("error: ")), len(lines) - 1)
        text = "\n".join(lines[max(start, 0) :]).removeprefix("error: ").strip()
        return text or f"ended with status {self.status} and said nothing"


def run(words: Sequence[str | Path], *, log: Path) -> Done:
    """Run ``llama-scale WORDS`` to its end.

    Args:
        words: Command and arguments.
        log: File that its stderr goes to, after a line with the command itself.
    """
    arguments = [str(word) for word in words]
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_SCALE_RUNS"}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ llama-scale {shlex.join(arguments)}\n")
        file.flush()
        # -P: nothing in the working directory is imported by accident.
        command = [sys.executable, "-P", "-m", "llama_scale", *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, env=environment, text=True
        ) as process:
            late = False
            try:
                out, _ = process.communicate(timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                late = True
                out = _end(process)
            except BaseException:
                _end(process)
                raise
    return Done(status=process.returncode, out=out or "", log=log, late=late)


def _end(process: subprocess.Popen[str]) -> str:
    process.terminate()
    try:
        return process.communicate(timeout=_END_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]
