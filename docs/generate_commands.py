"""Write commands.md beside this file from the commands' own help; `make docs` calls it.

python docs/generate_commands.py [FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from llama_scale.cli.app import COMMANDS
from llama_scale.cli.root import app

HEAD = """# Commands

Written by `make docs` from the commands' own help; do not edit. `--debug` shows tracebacks, wherever it stands.
Completion of a shell: `llama-scale --install-completion`.
"""


def render() -> str:
    """Return the page."""
    parts = [HEAD]
    root = typer.main.get_command(app)
    context = root.make_context("llama-scale", [], resilient_parsing=True)
    for name in COMMANDS:
        command = root.get_command(context, name)  # type: ignore[attr-defined]
        for words, found in _leaves(f"llama-scale {name}", command, context):
            parts.append(f"## {words.removeprefix('llama-scale ')}\n\n```text\n{_help(words, found)}\n```\n")
    return "\n".join(parts)


def _leaves(words: str, command: Any, context: Any) -> Iterator[tuple[str, Any]]:
    """Yield the commands at and below a command that do something."""
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _leaves(f"{words} {name}", command.get_command(context, name), context)
    else:
        yield words, command


def _help(words: str, command: Any) -> str:
    context = command.make_context(words, [], resilient_parsing=True, help_option_names=["-h", "--help"])
    context.terminal_width = context.max_content_width = 100
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "\n".join(lines).strip()


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("commands.md")
    target.write_text(render(), encoding="utf-8")
