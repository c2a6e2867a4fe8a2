"""The root of the command line: a Typer group whose commands are imported when they are called."""

from __future__ import annotations

import importlib
import os
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from llama_scale import __version__
from llama_scale.cli.app import COMMANDS, DEBUG_VARIABLE


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
        # Typer gives each app the options to install completion; one place, the root, is enough.
        command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
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
        os.environ[DEBUG_VARIABLE] = "1"
