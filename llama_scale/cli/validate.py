"""``llama-scale validate``: every error of many specs at once, for people, programs and GitHub."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_scale.cli.checking import Format, run_checks

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def validate(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="YAML files or quoted globs.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Replace a value in every spec; repeatable.")
    ] = None,
    output: Annotated[
        Format, typer.Option("--format", help="text; json: a list of problems; github: workflow annotations.")
    ] = Format.TEXT,
) -> None:
    """Check specs without torch: every error at once, with file:line:column and what to do.

    Example: `llama-scale validate run.yaml 'configs/**/*.yaml' --set train.steps=10`.

    Exit status 3: a spec has errors, or a name or glob matches no file.
    """
    status = run_checks(specs, overrides=overrides or (), output=output)
    if status:
        raise typer.Exit(status)
