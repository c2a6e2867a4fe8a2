"""Everything in this folder starts several processes. ``represented.txt`` lists cases that others stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
LINES = (HERE / "represented.txt").read_text(encoding="utf-8").splitlines()
REPRESENTED = {line for line in LINES if line and not line.startswith("#")}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, before tests that are marked ``soak`` are left out."""
    found = set()
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.engines)
        name = f"{item.path.name}::{item.name}"
        if name in REPRESENTED:
            found.add(name)
            item.add_marker(pytest.mark.soak)
    files = {name.partition("::")[0] for name in found}
    gone = {name for name in REPRESENTED - found if name.partition("::")[0] in files}
    if gone and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"{HERE / 'represented.txt'} lists what is no test: {', '.join(sorted(gone))}")
