"""``llama-scale init``: write a commented spec that validates and fits the site's devices."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from llama_scale.cli.init_finetune import choose_recipe, known, read_wish
from llama_scale.cli.output import emit, say
from llama_scale.cli.recipes import pretraining
from llama_scale.cli.spec_text import Choice, choose_layout, render_spec
from llama_scale.errors import Problem, SpecError
from llama_scale.spec.engine import Engine
from llama_scale.spec.fields import kinds_of, models_of
from llama_scale.spec.hf_config import HfConfigError, read_hf_config
from llama_scale.spec.launcher import Launcher
from llama_scale.spec.load import check_text
from llama_scale.spec.model import ModelShape
from llama_scale.spec.nearby import suggest
from llama_scale.spec.presets import PRESETS
from llama_scale.spec.profile_names import profile_names
from llama_scale.spec.profiles import load_profile, read_profile
from llama_scale.spec.resolve import name_of

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def init(
    *,
    model: Annotated[str, typer.Option(help="A preset (see --list-models) or a Hugging Face folder.")] = "smollm2-135m",
    profile: Annotated[str, typer.Option(help="Cluster profile: laptop, dgx-h100, ..., or a .yaml file.")] = "laptop",
    launcher: Annotated[str, typer.Option(help="How processes are started.")] = "local",
    engine: Annotated[str, typer.Option(help="Training system: megatron, deepspeed or ddp.")] = "megatron",
    task: Annotated[
        str | None, typer.Option(help="Fine-tune the folder's model on this kind of task, e.g. sft for conversations.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --task: file of its examples (JSONL, JSON, Parquet), or a folder of them.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="With --task: train this kind of adapter, e.g. lora. Default: the whole model.")
    ] = None,
    task_option: Annotated[
        list[str] | None, typer.Option(help="Option of the task, KEY=VALUE, e.g. a field's name; repeatable.")
    ] = None,
    adapter_option: Annotated[
        list[str] | None, typer.Option(help="Option of the adapter, KEY=VALUE, e.g. rank=8; repeatable.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Hosts; default 1, or with a launcher for several hosts the fewest on which the model fits."
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Write the fastest predicted layout, as `plan --search` finds it.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    list_models: Annotated[bool, typer.Option("--list-models", help="List the presets and exit.")] = False,
) -> None:
    """Write a commented spec for a model, a cluster profile and a launcher; it validates as it is.

    Example: `llama-scale init --model llama-3.1-8b --profile dgx-h100 --search -o run.yaml`.

    To fine-tune the model of a folder:
    `llama-scale init --model FOLDER --task sft --adapter lora --data chat.jsonl -o run.yaml`.

    Exit status 2: an unknown model, profile, launcher, engine, task or adapter; 3: a folder that holds no LLaMA, or a
    file that exists; 5: examples that cannot be used.
    """
    if list_models:
        emit(_models_table())
        return
    own = profile.endswith((".yaml", ".yml"))
    if not own:
        known("--profile", profile, profile_names())
    known("--launcher", launcher, [kind for form in models_of(Launcher) for kind in kinds_of(form)])
    known("--engine", engine, [kind for form in models_of(Engine) for kind in kinds_of(form)])
    asked = read_wish(
        model=model, task=task, data=data, adapter=adapter, task_options=task_option or (),
        adapter_options=adapter_option or (),
    )  # fmt: skip
    name, model_lines, tokenizer_lines, shape = _model(model)
    site = name_of(profile.removesuffix(".yaml").removesuffix(".yml")) if own else profile
    figures = read_profile(Path(profile)) if own else load_profile(profile)
    choice = Choice(
        name=f"{name}-{site if asked is None else asked.name}"[:64],
        command=_command(
            ("--model", model), ("--task", task), ("--adapter", adapter), ("--data", data),
            *(("--task-option", text) for text in task_option or ()),
            *(("--adapter-option", text) for text in adapter_option or ()),
            ("--profile", profile), ("--launcher", launcher), ("--engine", engine), ("--nodes", nodes),
            search=search,
        ),
        model=model_lines,
        tokenizer=tokenizer_lines,
        shape=shape,
        profile_line=f"profile_file: {json.dumps(str(Path(profile).absolute()))}" if own else f"profile: {profile}",
        profile=figures,
        launcher=launcher,
        engine=engine,
        recipe=pretraining(shape, cuda=figures.device == "cuda")
        if asked is None
        else choose_recipe(asked, folder=Path(model), shape=shape, profile=figures),
    )  # fmt: skip
    _write(_fitted(choice, nodes=nodes, search=search, model=model, file=str(output or "spec")), output, force=force)


def _fitted(choice: Choice, *, nodes: int | None, search: bool, model: str, file: str) -> str:
    """Return the spec's text with a layout that fits, or say that none does."""
    choice, fits = choose_layout(choice, nodes=nodes)
    text = render_spec(choice)
    loaded = check_text(text, name=file, folder=str(Path.cwd()))
    if loaded.spec is None:
        raise SpecError(loaded.problems)
    if search:
        from llama_scale.cli.init_search import best_layout  # lazy: only this form

        text, fits = best_layout(text, spec=loaded.spec)
    if choice.launcher == "local" and choice.nodes > 1:
        say(
            "warning: the local launcher starts processes on this machine only: `plan` shows the run on "
            f"{choice.nodes} hosts, and `launch` needs a launcher that reaches them"
        )
    if not fits:
        say(
            f"warning: {model} does not fit {choice.nodes} x {choice.profile.title}; see `llama-scale plan`, "
            "or name another profile or more --nodes"
        )
    return text


def _models_table() -> str:
    rows = [
        (name, f"{preset.parameters / 1e9:.2f}B", preset.title, preset.repository) for name, preset in PRESETS.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:{widths[0]}}  {size:>{widths[1]}}  {title:{widths[2]}}  {source}" for name, size, title, source in rows
    )


def _model(model: str) -> tuple[str, str, str, ModelShape]:
    """Return name, ``model`` lines, ``tokenizer`` lines and shape of a preset or a folder."""
    example = "\n# tokenizer:\n#   kind: hf\n#   path: path/to/the/tokenizer/folder\n"
    if model in PRESETS:
        return model, f"  kind: preset\n  name: {model}", example, PRESETS[model].shape
    folder = Path(model)
    if not folder.exists() and os.sep not in model:
        hint = suggest(model, list(PRESETS))
        raise typer.BadParameter(
            f"{model!r} is neither a preset nor a folder; {hint} (--list-models)", param_hint="--model"
        )
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise typer.BadParameter(
            f"there is no folder {model!r} here; if it is a model of the hub, download it: hf download {model} "
            f"--local-dir {folder.name}, then --model {folder.name}",
            param_hint="--model",
        )
    try:
        shape = read_hf_config(folder).shape
    except HfConfigError as error:
        raise SpecError(
            [Problem(path=(), message=fault, file=model, code="hf-config") for fault in error.faults]
        ) from error
    path = json.dumps(str(folder.absolute()))
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = f"\ntokenizer:\n  kind: hf\n  path: {path}\n" if has_tokenizer else example
    return name_of(str(folder.absolute())), f"  kind: hf\n  path: {path}", tokenizer, shape


def _command(*options: tuple[str, object], search: bool) -> str:
    """Return the command line that gives these options; those without a value are left out."""
    words = ["llama-scale", "init"]
    for option, value in options:
        words += [] if value is None else [option, str(value)]
    return shlex.join([*words, *(["--search"] if search else [])]).encode("unicode_escape").decode("ascii")


def _write(text: str, output: Path | None, *, force: bool) -> None:
    if output is None:
        emit(text)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise SpecError(f"{output} exists already and is not overwritten; give --force or another --output") from error
    except OSError as error:
        raise SpecError(f"{output} cannot be written: {error.strerror}") from error
    say(f"wrote {output}")
