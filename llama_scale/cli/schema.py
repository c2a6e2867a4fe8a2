"""``llama-scale schema``: the JSON Schema of the spec, for editors and other tools."""

from __future__ import annotations

import typer

from llama_scale.cli.output import emit_json
from llama_scale.spec.json_schema import spec_schema

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of the spec: what `validate` accepts section by section.

    Rules between sections (degrees that must divide, batch arithmetic, world size) are beyond it: run `validate`.
    """
    emit_json(spec_schema())
