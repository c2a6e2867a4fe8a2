"""``llama-scale tokenizer``: train a SentencePiece tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.output import emit, say
from llama_scale.data.documents import TextUnit, find_source
from llama_scale.data.sentencepiece_training import (
    LARGEST_SEED,
    LARGEST_VOCABULARY,
    LEAST_LINES,
    LEAST_VOCABULARY,
    ModelType,
)

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Train a SentencePiece tokenizer."""


@app.command()
def train(
    *,
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", metavar="FILE_OR_GLOB", help="Text: .txt or .jsonl, plain or .gz; repeatable."),
    ],
    vocab_size: Annotated[
        int,
        typer.Option(
            "--vocab-size",
            min=LEAST_VOCABULARY,
            max=LARGEST_VOCABULARY,
            help="Pieces, special ones and bytes included.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR_OR_MODEL", help="A .model file, or a folder for one.")
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE_OR_GLOB]...", help="More input.")] = None,
    model_type: Annotated[ModelType, typer.Option("--model-type", help="BPE as LLaMA's, or Unigram.")] = "bpe",
    field: Annotated[str, typer.Option("--field", help="Key of the text in a JSONL line.")] = "text",
    text_unit: Annotated[TextUnit, typer.Option("--text-unit", help="What is one document of a .txt file.")] = "line",
    max_lines: Annotated[
        int, typer.Option("--max-lines", min=LEAST_LINES, help="Lines to train on; of more, a random sample.")
    ] = 2_000_000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Seed of that sample.")] = 1234,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model.")] = False,
) -> None:
    """Train a tokenizer with LLaMA's conventions: byte fallback, single digits, text left as it is.

    Example: `llama-scale tokenizer train --input 'text/*.jsonl.gz' --vocab-size 32000 --output tok`.

    Ids 0, 1, 2 are unk, bos, eos; there is no pad. The same text gives the same model. Prints the model's path.
    """
    from llama_scale.data.sentencepiece_training import train_sentencepiece

    source = find_source([*inputs, *(more or ())], field=field, unit=text_unit)
    say(f"training on {len(source.files)} file(s), {source.size_bytes / 1e6:.1f} MB, with {os.cpu_count()} cores")
    model = train_sentencepiece(
        source,
        output,
        vocab_size=vocab_size,
        model_type=model_type,
        max_lines=max_lines,
        seed=seed,
        force=force,
    )
    say(f"wrote {vocab_size} pieces")
    emit(str(model))
