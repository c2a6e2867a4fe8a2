"""The ``llama-scale`` command: a table of commands that are imported when they are called.

Errors of ``llama_scale.errors`` become exit codes here and nowhere else. No traceback is shown without ``--debug``.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from llama_scale import __version__
from llama_scale.cli.output import say
from llama_scale.errors import LlamaScaleError

_DEBUG = "LLAMA_SCALE_DEBUG"

COMMANDS: dict[str, str] = {
    "init": "Write a commented spec for a model, a cluster profile and a launcher.",
    "validate": "Check specs without torch: every error at once, with file:line.",
    "schema": "Print the JSON Schema of the spec.",
    "plan": "Show who computes what, memory by part and stage, and the pipeline's bubble.",
    "launch": "Render a run's bundle and run it; --dry-run stops at the bundle.",
    "runs": "List the runs of a folder.",
    "status": "Show how a run is doing.",
    "logs": "Print or follow a run's logs.",
    "stop": "Stop a run after it has saved a checkpoint.",
    "resume": "Go on from the newest complete checkpoint, also on another layout.",
    "data": "Build token files from text.",
    "tokenizer": "Train a SentencePiece tokenizer.",
    "convert": "Convert between Hugging Face folders and sharded checkpoints, and prove it.",
    "generate": "Complete prompts with an exported model.",
}
"""Command name -> one line of help. The code is in ``llama_scale.cli.<name>``, a Typer called ``app``."""


class LazyGroup(TyperGroup):
    """Look commands up in COMMANDS and import a command's module only when it runs."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command; None (a usage error) for a name that is not in the table."""
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(name=cmd_name, help=COMMANDS[cmd_name])
        module = importlib.import_module(f"llama_scale.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name; for a misspelt one, name the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches  # lazy: only for a wrong command

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete command names from the table, so that a Tab imports none of them."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands from the table, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    name="llama-scale",
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take a LLaMA-family model with several adapters from one YAML file to a proven Hugging Face model.

    First steps: `llama-scale init --model llama-3.2-1b > run.yaml`, `llama-scale validate run.yaml`,
    `llama-scale plan run.yaml`, `llama-scale launch run.yaml --dry-run`.
    """
    if debug:
        os.environ[_DEBUG] = "1"


def main() -> None:
    """Run the command line and exit with the documented status."""
    _take_debug(sys.argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text in the locale's encoding
    try:
        app()
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain once more while flushing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except LlamaScaleError as error:
        if os.environ.get(_DEBUG):
            raise
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        text = " ".join(str(error).split())
        say(f"error: {type(error).__name__}: {text} (not expected; run with --debug to see where)")
        sys.exit(1)


def _take_debug(argv: list[str]) -> None:
    """Let ``--debug`` stand anywhere on the command line, not only before the command."""
    end = argv.index("--") if "--" in argv else len(argv)
    if "--debug" in argv[1:end]:
        os.environ[_DEBUG] = "1"
        argv[1:end] = [word for word in argv[1:end] if word != "--debug"]
