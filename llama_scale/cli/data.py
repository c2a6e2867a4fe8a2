"""``llama-scale data``: text to token files, their figures, and recipes for corpora."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_scale.cli.data_examples import app as examples
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.data.documents import TextUnit, find_source

if TYPE_CHECKING:
    from llama_scale.data.build import Progress

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
corpus = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(corpus, name="corpus")
app.add_typer(examples, name="examples")

_SMALL_BYTES = 8 << 20
"""Input that one process encodes sooner than several have started."""


@app.callback()
def _root() -> None:
    """Build token files from text."""


@corpus.callback()
def _corpus() -> None:
    """Make a text corpus from public sources."""


@app.command()
def build(
    *,
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", metavar="FILE_OR_GLOB", help="Text: .txt or .jsonl, plain or .gz; repeatable."),
    ],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", metavar="PATH", help="SentencePiece .model, or Hugging Face folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PREFIX", help="Path without .bin and .idx.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE_OR_GLOB]...", help="More input.")] = None,
    field: Annotated[str, typer.Option("--field", help="Key of the text in a JSONL line.")] = "text",
    text_unit: Annotated[TextUnit, typer.Option("--text-unit", help="What is one document of a .txt file.")] = "line",
    append_eos: Annotated[bool, typer.Option(help="End each document with the tokenizer's EOS.")] = True,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=512, help="Encoding processes. Default: one a core; one for less than 8 MiB."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write PREFIX.bin and PREFIX.idx in Megatron-Core's format, and PREFIX.json with counts and digests.

    Example: `llama-scale data build --input 'text/*.jsonl.gz' --tokenizer tok --output corpus`.

    Each document begins with what the tokenizer itself puts before a text (its BOS, or nothing) and ends with EOS. The
    files appear only when they are complete. Prints the record PREFIX.json.
    """
    from llama_scale.data.build import build_token_files

    source = find_source([*inputs, *(more or ())], field=field, unit=text_unit)
    if workers is None:
        workers = 1 if source.size_bytes < _SMALL_BYTES else len(os.sched_getaffinity(0))
    with _bar() as on_progress:
        record = build_token_files(
            source,
            tokenizer,
            output,
            append_eos=append_eos,
            workers=workers,
            force=force,
            on_progress=on_progress,
        )
    say(f"wrote {output}.bin, .idx and .json: {record.documents:,} documents, {record.tokens:,} tokens")
    if record.special_in_text:
        say(
            f"note: {record.special_in_text:,} documents spell a special token of the tokenizer (such as its EOS); it "
            "was read as that token, as transformers does: remove it from the text if it stands there by accident"
        )
    emit_json(asdict(record))


@app.command()
def info(
    prefix: Annotated[str, typer.Argument(help="Path of a .bin/.idx pair without its suffix.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare both files with the digests in PREFIX.json.")
    ] = False,
) -> None:
    """Show documents, tokens and the unigram entropy of a token file.

    Example: `llama-scale data info corpus --verify`.

    The unigram entropy is the loss of the best model without context, in nats a token; training must get below it.
    """
    from llama_scale.data.statistics import token_statistics, verify_digests

    if verify:
        verify_digests(prefix)
    found = token_statistics(prefix)
    if as_json:
        emit_json(asdict(found))
        return
    emit(f"documents        {found.documents:,}")
    emit(f"tokens           {found.tokens:,} ({found.dtype})")
    emit(f"document length  {found.shortest_tokens:,} to {found.longest_tokens:,} tokens")
    for name, token in (("first token", found.first_id), ("last token", found.last_id)):
        emit(f"{name:<16} {f'id {token:,} in every document' if token is not None else 'differs between documents'}")
    emit(f"distinct tokens  {found.distinct_tokens:,}, largest id {found.max_token_id:,}")
    emit(f"unigram entropy  {found.unigram_entropy_nats:.4f} nats a token")


@corpus.command()
def debian(
    output: Annotated[Path, typer.Option("--output", "-o", help="A .jsonl or .jsonl.gz file.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Documents at most.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write the English descriptions of Debian's packages, fetched by apt (no root needed), as JSONL.

    Example: `llama-scale data corpus debian --output debian.jsonl.gz`.

    Each description is under its package's licence: use the file, but do not pass it on as one work.
    """
    from llama_scale.data.debian import write_debian_corpus

    say("asking apt for the package descriptions")
    say(f"wrote {write_debian_corpus(output, limit=limit, force=force):,} documents")
    emit(str(output))


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """Show progress on a terminal; a log gets the summary only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("encoding"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[tokens]:,} tokens"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None, tokens=0)
        yield lambda now: progress.update(task, total=now.total_bytes, completed=now.read_bytes, tokens=now.tokens)
