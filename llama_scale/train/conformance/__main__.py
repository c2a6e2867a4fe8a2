"""``python -m llama_scale.train.conformance REQUEST.json CHECKS.json``: run the suite for one plugin."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from llama_scale.extensions.api import ADAPTERS, GATES, LAUNCHERS, TASKS
from llama_scale.extensions.conformance import Check, CheckRequest
from llama_scale.train.conformance.report import Report


def main(argv: list[str] | None = None) -> int:
    """Run the suite and write what came out; the status is 0 whatever the plugin is like."""
    request_file, out = map(Path, sys.argv[1:] if argv is None else argv)
    request = CheckRequest.from_json(request_file.read_text(encoding="utf-8"))
    checks = run(request)
    out.write_text(json.dumps([asdict(check) for check in checks]), encoding="utf-8")
    return 0


def run(request: CheckRequest) -> list[Check]:
    """Return the checks of one plugin, in the order in which they were made."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="llama-scale-conformance-") as folder:
        _suite(request.group)(report, request, Path(folder))
    return report.checks


_SUITES = {ADAPTERS: "adapters", TASKS: "tasks", GATES: "gates", LAUNCHERS: "launchers"}
"""Group -> module beside this one."""


def _suite(group: str) -> Callable[[Report, CheckRequest, Path], None]:
    module = importlib.import_module(f"llama_scale.train.conformance.{_SUITES[group]}")
    suite: Callable[[Report, CheckRequest, Path], None] = module.check
    return suite


if __name__ == "__main__":
    sys.exit(main())
