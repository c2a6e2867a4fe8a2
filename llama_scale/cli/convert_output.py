"""What `convert` and `generate` share: the libraries they need, progress bars and the table of a verification."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_scale.cli.output import emit, emit_json
from llama_scale.errors import ConvertError
from llama_scale.libraries import missing_message

if TYPE_CHECKING:
    from llama_scale.checkpoint.manifest import Manifest
    from llama_scale.convert.proof import Proof


_LIBRARIES = ("torch", "safetensors", "transformers")


def need_libraries(command: str) -> None:
    """Refuse a command that the light install cannot do, without importing anything.

    Raises:
        ConvertError: Names the libraries that are missing.
    """
    fault = missing_message(f"`llama-scale {command}` needs", *_LIBRARIES)
    if fault:
        raise ConvertError(fault)


def import_adapters(folders: list[str], target: Path, *, base: Path | None) -> Manifest:
    """Make a checkpoint of PEFT folders, each ``[NAME=]FOLDER``; without a name the folder's own is the adapter's.

    Raises:
        ConvertError: One of the two options is missing, two adapters have one name, or the import failed.
    """
    if base is None or not folders:
        raise ConvertError(
            "--peft FOLDER needs --base CHECKPOINT, the model that the adapter was trained on, and vice versa"
        )
    named: dict[str, Path] = {}
    for text in folders:
        name, mark, place = text.partition("=")
        folder = Path(place if mark else text)
        key = name if mark else Path(os.path.abspath(folder)).name  # noqa: PTH100 - of a link, the name that it has here
        if key in named:
            raise ConvertError(f"two adapters are called {key!r}; give them names: --peft NAME={folder}")
        named[key] = folder
    from llama_scale.convert.import_peft import import_peft  # lazy: keeps torch out of --help

    return import_peft(named, target, base=base)


def proven_words(proven: dict[str, Any] | None, *, against: str) -> str:
    """Return the outcome of a proof as a phrase.

    Args:
        proven: Its figures in report.json; None: it was left out.
        against: Whose logits were the other ones.
    """
    if proven is None:
        return "not verified (--no-verify)"
    worst = max(c["relative"] for c in proven["comparisons"])
    return f"logits equal to {against} within {worst:.1e} (allowed {proven['tolerance']:.0e})"


def exported(report: dict[str, Any], *, target: Path, checkpoint: Path) -> tuple[dict[str, Any], str]:
    """Return what `export` prints: as JSON, and as a line."""
    proven = report.get("verify")
    words = proven_words(proven, against="the sharded model's")
    result = {"hf": str(target), "checkpoint": str(checkpoint), "step": report["step"], "dtype": report.get("dtype")}
    result |= {
        "base": report["base"],
        "adapter": report.get("adapter"),
        "adapters": report.get("adapters"),
        "mixture": report.get("mixture"),
    }
    count = report["counts"]["target_tensors"] if "counts" in report else len(report["tensors"])
    result |= {"tensors": count, "tokenizer": report.get("tokenizer"), "verify": proven}
    what = [f"step {report['step']}", report.get("dtype") or "", f"adapter {report.get('adapter')}"]
    shown = ", ".join(part for part in (what if report.get("adapter") else what[:2]) if part)
    return result, f"{target}: {shown}; {words}"


def render(proof: Proof) -> str:
    """Return a verification as a table of at most 80 columns."""
    from rich.console import Console  # lazy: keeps rich out of --help
    from rich.table import Table

    layout = proof.layout
    title = f"tensor={layout['tensor']} x pipeline={layout['pipeline']}"
    title += f" x virtual={layout['virtual']}" if layout["virtual"] > 1 else ""
    table = Table(title=f"sharded model ({title}) against transformers", title_justify="left")
    table.add_column("prompt", width=19, no_wrap=True)
    for name, width in (("tokens", 6), ("max diff", 8), ("relative", 8), ("argmax", 6), ("greedy", 7), ("", 4)):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    for row in proof.comparisons:
        greedy = "-" if row.generated is None else f"{row.generated_equal}/{row.generated}"
        table.add_row(
            repr(row.prompt) if row.prompt != "random" else "random tokens",
            str(row.tokens),
            f"{row.max_abs_diff:.1e}",
            f"{row.relative:.1e}",
            f"{row.same_argmax:.0%}",
            greedy,
            "ok" if row.passed else "FAIL",
        )
    buffer = io.StringIO()
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    console = Console(file=buffer, width=80, force_terminal=coloured, no_color=not coloured, highlight=False)
    console.print(table)
    same = proof.tensors - len(proof.differing)
    lines = [buffer.getvalue().rstrip(), f"weights: {same} of {proof.tensors} tensors equal bit by bit"]
    lines += [f"note: {proof.note}"] if proof.note else []
    return "\n".join(lines)


class _Bar:
    """Show the phases of a conversion as progress bars of bytes."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def start(self, label: str, total: int) -> None:
        """Begin a bar."""
        self._task = self._progress.add_task(label, total=total)

    def advance(self, amount: int) -> None:
        """Move it."""
        self._progress.advance(self._task, amount)


@contextlib.contextmanager
def progress_bar() -> Iterator[_Bar]:
    """Give a progress bar on stderr; it shows nothing where stderr is no terminal."""
    from rich.console import Console  # lazy: keeps rich out of --help
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bar(progress)


def show(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Print a result, as JSON or in words."""
    if as_json:
        emit_json(result)
    else:
        emit(text)
