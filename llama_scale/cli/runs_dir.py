"""The option that all commands about runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="DIR", envvar="LLAMA_SCALE_RUNS", help="Folder of run folders.")
]
"""Folder of run folders; ``runs`` in the current folder by default."""
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Path of a run folder, or the beginning of a run's name.")]
"""A run, as ``runs.find.find_run`` understands it."""
DEFAULT_RUNS = Path("runs")
