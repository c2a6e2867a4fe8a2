"""Call a command in this process; errors come out as exceptions, as ``cli.app.main`` sees them."""

from __future__ import annotations

import importlib
from pathlib import Path

import typer.main


def call(command: str, *arguments: str | Path) -> int:
    """Return the exit code of a command that raised nothing."""
    module = importlib.import_module(f"llama_scale.cli.{command}")
    found = typer.main.get_command(module.app)
    code = found.main([str(argument) for argument in arguments], prog_name=command, standalone_mode=False)
    return int(code or 0)
