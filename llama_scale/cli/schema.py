"""``llama-scale schema``: the JSON Schema of the spec, for editors and other tools."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_scale.cli.output import emit_json, say
from llama_scale.spec.json_schema import spec_schema
from llama_scale.spec.plugin_schema import installed_schema

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def schema(
    core: Annotated[bool, typer.Option("--core", help="Leave the options of plugins free.")] = False,
) -> None:
    """Print the JSON Schema (draft 2020-12) of the spec: what `validate` accepts section by section.

    Example: `llama-scale schema > spec.schema.json`.

    It has the options of all installed adapters, tasks and gates; a plugin that is broken is left out. Rules between
    sections (degrees that must divide, batch arithmetic, world size) are beyond it: run `validate`.
    """
    if core:
        emit_json(spec_schema())
        return
    document, left_out = installed_schema()
    for reason in left_out:
        say(f"warning: {reason}")
    emit_json(document)
