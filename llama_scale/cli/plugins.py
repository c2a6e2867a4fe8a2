"""``llama-scale plugins``: what is installed, the conformance suite, and a scaffold for a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.plugins_check import check
from llama_scale.cli.plugins_new import new
from llama_scale.columns import columns
from llama_scale.errors import PluginError
from llama_scale.extensions.listing import Listed, list_plugins

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

_HEAD = ("GROUP", "NAME", "DISTRIBUTION", "VERSION", "STATE", "SUMMARY")


@app.callback()
def _root() -> None:
    """Adapters, tasks, gates and launchers that installed distributions bring."""


app.command("check", short_help="Run the conformance suite on a plugin.")(check)
app.command("new", short_help="Write a new plugin to start from.")(new)


@app.command("list", short_help="List all plugins.")
def list_command(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plugins as JSON.")] = False,
) -> None:
    """List all plugins, built-in ones first-class among them; a broken one is listed with the reason.

    Example: `llama-scale plugins list --json`.

    The exit status is 4 if two distributions bring the same name: no spec can use it until one is uninstalled.
    """
    found = list_plugins()
    if as_json:
        emit_json([asdict(plugin) for plugin in found])
    else:
        _write_table(found)
    clashes = sorted({plugin.reason for plugin in found if plugin.state == "clash"})
    if clashes:
        raise PluginError("; ".join(clashes))


def _write_table(found: Sequence[Listed]) -> None:
    emit(columns([_HEAD, *(_row(plugin) for plugin in found)]))
    for plugin in found:
        if plugin.state == "broken":
            say(f"broken: {plugin.reason}" if plugin.name else f"broken: {plugin.distribution}: {plugin.reason}")


def _row(plugin: Listed) -> tuple[str, ...]:
    group = plugin.group.removeprefix("llama_scale.") if plugin.group else "?"
    return (group, plugin.name or "?", plugin.distribution, plugin.version or "?", plugin.state, plugin.summary)
