"""What `plugins check` asks a plugin, and what comes out: the suite itself runs in a process of its own, with torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llama_scale.errors import PluginError

Status = Literal["passed", "failed", "not applicable"]

SUITE = "llama_scale.train.conformance"
"""Module that runs the suite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One requirement on a plugin.

    Args:
        name: What is required, e.g. ``tensor parallel 2 equals 1``.
        status: How it went.
        detail: Figures of a passed check, what is wrong with a failed one, or why it does not apply.
    """

    name: str
    status: Status
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What is checked.

    Args:
        group: Entry point group.
        name: Name of the plugin.
        options: Its options, as in a spec.
    """

    group: str
    name: str
    options: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the request as JSON text that :meth:`from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CheckRequest:
        """Read a request that this class wrote."""
        return cls(**json.loads(text))


def run_suite(request: CheckRequest) -> list[Check]:
    """Run the suite in a process of its own and return its checks in order.

    Raises:
        PluginError: The process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="llama-scale-check-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(request.to_json(), encoding="utf-8")
        command = [sys.executable, "-P", "-m", SUITE, str(folder / "request.json"), str(folder / "checks.json")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
        try:
            found = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            last = said[-1] if said else "it said nothing"
            raise PluginError(
                f"the suite for {request.name!r} ended with status {done.returncode} and no result: {last}; run "
                f"`{sys.executable} -m {SUITE}` where torch and megatron-core are installed"
            ) from error
    return [Check(**check) for check in found]


def passed(checks: Sequence[Check]) -> bool:
    """Tell whether nothing failed."""
    return all(check.status != "failed" for check in checks)
