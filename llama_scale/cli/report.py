"""``llama-scale report``: one HTML page about runs, compared with each other and with what was predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit
from llama_scale.cli.plan_site import site_hardware
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.errors import ReportError
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.find import find_run
from llama_scale.runs.folder import RunFolder

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [RUN...]", help="Paths of run folders, or the beginnings of runs' names."),
    ],
    *,
    runs_dir: RunsDir = DEFAULT_RUNS,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page; default report.html in the first run's folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no report.")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="Accelerator to predict for, e.g. h100, instead of the cluster profile's.")
    ] = None,
    hardware_file: Annotated[
        Path | None, typer.Option("--hardware", metavar="FILE", help="YAML list of your own accelerators.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: loss, throughput, step time and memory against the plan, restarts.

    Example: `llama-scale report first second --output both.html`.

    The page's path is printed. Exit status 5: a run is not found or cannot be read, or the page cannot be written.
    """
    from llama_scale.report.collect import collect  # lazy: --help draws nothing
    from llama_scale.report.page import render_page

    folders = _distinct(runs, runs_dir)
    target = output or folders[0].path / "report.html"
    _check(target, force=force)
    names = _names(folders)
    facts = [
        collect(folder, name=name, hardware_of=lambda spec: site_hardware(spec, gpu=gpu, file=hardware_file))
        for folder, name in zip(folders, names, strict=True)
    ]
    try:
        write_atomically(target, render_page(facts))
    except OSError as error:
        raise ReportError(f"cannot write {target}: {error.strerror}; choose another place with --output FILE") from None
    emit(str(target))


def _distinct(runs: list[str], runs_dir: Path) -> list[RunFolder]:
    """Return the folders, each once."""
    return list(dict.fromkeys(find_run(name, root=runs_dir) for name in runs))


def _names(folders: list[RunFolder]) -> list[str]:
    """Return the folders' names; where two are alike, with the folder above them."""
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [str(folder.path) for folder in folders]


def _check(target: Path, *, force: bool) -> None:
    """Refuse to overwrite what is no report.

    Raises:
        ReportError: such a file is there.
    """
    from llama_scale.report.page import MARK  # lazy: --help draws nothing

    if force or not target.exists():
        return
    try:
        head = target.read_bytes()[:4096]
    except OSError as error:
        raise ReportError(f"cannot write {target}: {error.strerror}; choose another --output FILE") from None
    if MARK.encode() not in head:
        raise ReportError(f"{target} exists and is no report; it is not overwritten: give --force or another --output")
