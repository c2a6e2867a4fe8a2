"""``llama-scale generate``: complete prompts with an exported model, through transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.convert_output import need_libraries
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.errors import ConvertError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder, e.g. from `llama-scale convert export`.")],
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text to complete; repeatable.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file with one prompt a line.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this sum.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print prompts, completions and token ids as JSON.")] = False,
) -> None:
    """Complete prompts with a model that `convert export` wrote, or any LLaMA that transformers loads.

    Exit status 6: the folder holds no model or no tokenizer.
    """
    need_libraries("generate")
    prompts = _prompts(prompt or [], prompts_file)
    if top_p == 0.0:
        raise ConvertError("--top-p 0 leaves no token to choose from; use a value above 0, or --temperature 0")
    from llama_scale.convert.completion import Sampling, complete  # lazy: keeps torch out of --help

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    completions = complete(model, prompts, sampling=sampling, on_loaded=say)
    if as_json:
        emit_json([c.to_data() for c in completions])
        return
    for completion in completions:
        emit(f"{completion.prompt}{completion.text}\n")


def _prompts(given: list[str], file: Path | None) -> list[str]:
    prompts = list(given)
    if file is not None:
        try:
            prompts += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConvertError(f"--prompts-file {file} cannot be read: {error}") from error
    if not prompts:
        raise ConvertError("no prompt is given; use --prompt TEXT (repeatable) or --prompts-file FILE")
    return prompts
