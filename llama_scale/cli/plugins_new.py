"""``llama-scale plugins new``: a distribution to start from, whose own tests pass."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit, say
from llama_scale.extensions.scaffold import scaffold
from llama_scale.spec.plugins import catalogue


class Kind(StrEnum):
    """What can be started."""

    ADAPTER = "adapter"
    TASK = "task"


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The kind's name in a spec, e.g. gated-lora.")],
    *,
    kind: Annotated[Kind, typer.Option("--kind", help="What the plugin brings.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder; default: llama-scale-NAME.")
    ] = None,
) -> None:
    """Write a new plugin: a distribution with entry point, a working example to change, and tests.

    Example: `llama-scale plugins new gain --kind adapter`.
    """
    folder = scaffold(name, kind.value, out, installed=catalogue())
    emit(str(folder))
    say(f"next: pip install -e '{folder}[test]', llama-scale plugins check {name}, pytest {folder}")
