"""``llama-scale generate``: complete prompts with a run, a checkpoint or an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.convert_output import need_libraries
from llama_scale.cli.output import emit, emit_json, say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunsDir
from llama_scale.cli.source_options import LARGEST_SEED, ModelName, Step, TrustCode
from llama_scale.cli.text_lines import text_lines
from llama_scale.errors import ConvertError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def generate(
    model: ModelName,
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text to complete; repeatable.")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Text file with one prompt a line; - is standard input.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put each prompt into the tokenizer's chat template.")] = False,
    system: Annotated[
        str | None,
        typer.Option(help="With --chat: the system message. Default: the option system of the run's only task sft."),
    ] = None,
    who: Annotated[
        str | None,
        typer.Option("--with", help="base, an adapter's name or mixture. Default: the mixture, or the only adapter."),
    ] = None,
    step: Step = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this sum.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts completed at a time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print prompts, completions and token ids as JSON.")] = False,
    trust_remote_code: TrustCode = False,
    runs_dir: RunsDir = DEFAULT_RUNS,
) -> None:
    """Complete prompts with a run's newest checkpoint, with a checkpoint, or with a Hugging Face folder.

    Example: `llama-scale generate RUN --prompt "To open the" --max-new-tokens 20`.

    Exit status 5: there is no such model or adapter; 6: its folder holds no model or no tokenizer.
    """
    need_libraries("generate")
    prompts = text_lines(
        prompt or [],
        prompts_file,
        option="--prompts-file",
        missing="no prompt is given; use --prompt TEXT (repeatable) or --prompts-file FILE",
        error=ConvertError,
    )
    if system is not None and not chat:
        raise ConvertError("--system is a message of a conversation and goes with --chat; add --chat, or leave it out")
    if top_p == 0.0:
        raise ConvertError("--top-p 0 leaves no token to choose from; use a value above 0, or --temperature 0")
    from llama_scale.evaluation.answering import Sampling, answering  # lazy: keeps torch out of --help
    from llama_scale.evaluation.completion import complete
    from llama_scale.evaluation.source import open_source

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    with open_source(model, runs_dir=runs_dir, step=step, progress=say) as source:
        made = answering(source, sampling=sampling, batch_size=batch_size, trust_code=trust_remote_code)
        if who is not None:
            made.choose(who, task=None)
        say(f"{source.folder}: {made.model.parameters:,} parameters")
        if chat and system is None and (system := made.trained_system()) is not None:
            say(f"system message of the run's task: {system}")
        completions = complete(
            made.model, made.text_tokenizer(), prompts, max_new_tokens=max_new_tokens, chat=chat, system=system
        )
    if as_json:
        emit_json([c.to_data() for c in completions])
        return
    for completion in completions:
        emit(f"{completion.text}\n" if chat else f"{completion.prompt}{completion.text}\n")
