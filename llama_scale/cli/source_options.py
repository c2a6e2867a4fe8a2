"""The options that all commands share which look at a run, a checkpoint or a Hugging Face folder."""

from __future__ import annotations

from typing import Annotated

import typer

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run (path or beginning of its name), a checkpoint or a Hugging Face folder."
    ),
]
Step = Annotated[int | None, typer.Option("--step", min=0, help="Checkpoint of a run; default: the newest.")]
LARGEST_SEED = 2**32 - 1
"""Every library's random numbers take seeds up to this."""
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that a Hugging Face folder brings, where it is not, byte for byte, what an export of "
        "llama-scale writes (in whose place the installed version runs).",
    ),
]
