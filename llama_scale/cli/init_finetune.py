"""``llama-scale init --task``: look at model folder, task, adapter and data, and choose a fine-tuning run's numbers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from llama_scale.cli.init_rows import look_at_rows, row_length, rows_a_step
from llama_scale.cli.output import say
from llama_scale.cli.recipes import EPOCHS, FineTuning, Recipe, finetuning
from llama_scale.data.chat import ChatTemplate
from llama_scale.errors import DataError, SpecError
from llama_scale.extensions import discover
from llama_scale.extensions.api import ADAPTERS, TASKS, TaskDescriptor
from llama_scale.extensions.examples import FileTaskOptions
from llama_scale.spec.base import PathContext
from llama_scale.spec.model import ModelShape
from llama_scale.spec.nearby import suggest
from llama_scale.spec.nodes import MappingNode, Mark
from llama_scale.spec.overrides import apply_overrides
from llama_scale.spec.plugin_options import check_options
from llama_scale.spec.presets import PRESETS
from llama_scale.spec.profiles import Profile
from llama_scale.spec.section_text import flow

_ADAPTER_OPTIONS: dict[str, dict[str, Any]] = {"lora": {"rank": 16, "alpha": 32, "targets": "all-linear"}}
"""Options that `init` writes out; other kinds get their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for.

    Args:
        task: Kind of the task.
        data: File or folder of its examples.
        adapter: Kind of the adapter; None: the whole model trains.
        task_options: ``KEY=VALUE`` each.
        adapter_options: ``KEY=VALUE`` each.
    """

    task: str
    data: Path
    adapter: str | None
    task_options: Sequence[str]
    adapter_options: Sequence[str]

    @property
    def name(self) -> str:
        """What the run's name says of it."""
        return f"{self.task}-{self.adapter or 'full'}"


def read_wish(
    *,
    model: str,
    task: str | None,
    data: Path | None,
    adapter: str | None,
    task_options: Sequence[str],
    adapter_options: Sequence[str],
) -> Wish | None:
    """Return what is to be fine-tuned; None where no task is named.

    Raises:
        typer.BadParameter: Options that do not go together, an unknown task or adapter, a preset as the model.
    """
    if task is None:
        given = (("--adapter", adapter), ("--data", data), ("--task-option", task_options))
        for option, value in (*given, ("--adapter-option", adapter_options)):
            if value:
                raise typer.BadParameter("it needs --task, e.g. --task sft for conversations", param_hint=option)
        return None
    known("--task", task, discover.names(TASKS))
    if adapter is not None:
        known("--adapter", adapter, discover.names(ADAPTERS))
    elif adapter_options:
        raise typer.BadParameter("it needs --adapter, e.g. --adapter lora", param_hint="--adapter-option")
    if model in PRESETS:
        raise typer.BadParameter(
            f"{model!r} is a preset: numbers without weights, and there is nothing to fine-tune; download the model "
            f"({PRESETS[model].repository}, or its instruct variant) and give --model its folder",
            param_hint="--model",
        )
    if data is None:
        raise typer.BadParameter(f"--task {task} needs a file of examples, e.g. --data chat.jsonl", param_hint="--data")
    return Wish(task=task, data=data, adapter=adapter, task_options=task_options, adapter_options=adapter_options)


def known(option: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices.

    Raises:
        typer.BadParameter: It is not; the nearest choice is named.
    """
    if value not in choices:
        raise typer.BadParameter(f"{value!r} is not known; {suggest(value, choices)}", param_hint=option)


def choose_recipe(wish: Wish, *, folder: Path, shape: ModelShape, profile: Profile) -> Recipe:
    """Read the data and return the recipe.

    Args:
        wish: What the command line asks for.
        folder: The model's.
        shape: Its numbers.
        profile: The machine's figures.

    Raises:
        SpecError: The folder has no tokenizer, or options have faults.
        DataError: The file is missing, damaged or empty, a row cannot be used, or the tokenizer has no chat template.
    """
    _check_tokenizer(folder)
    options, comments = _task_options(discover.task(wish.task), wish)
    if getattr(options, "chat", False):
        ChatTemplate(folder)
    try:
        found, shares = look_at_rows(options, folder=folder, vocab_size=shape.vocab_size)
    except DataError as error:
        about_options = re.search(r"(\(|the |task's )options?\b", str(error))
        raise DataError(
            f"{error}{'; an option is given by --task-option NAME=VALUE' if about_options else ''}"
        ) from error
    length = row_length(found, context=shape.max_position_embeddings, cuda=profile.device == "cuda")
    plain = options.model_dump(mode="json", by_alias=True, exclude_unset=True)
    plain |= {"data": {"kind": "split_shares", "path": str(wish.data.absolute()), **shares}}
    if found.longest > length and _stops_at_long_rows(options):
        plain["overlong"] = "truncate_right"
        comments["overlong"] = f"{found.where} may be longer than seq_length; or drop, or error"
    rows, step = math.ceil(found.tokens / length), rows_a_step(found, length=length)
    return finetuning(
        FineTuning(
            task=wish.task,
            task_options=plain,
            comments=comments,
            adapter=wish.adapter,
            adapter_options=_adapter_options(wish),
            seq_length=length,
            rows_a_step=step,
            steps=max(1, EPOCHS * rows // step),
            validation=found.rows["validation"] > 0,
        )
    )


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise SpecError(
            f"{folder} has no tokenizer.json, and the task needs the model's tokenizer; download it with the model, or "
            "let transformers write it from the tokenizer files that are there: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )


def _task_options(descriptor: TaskDescriptor, wish: Wish) -> tuple[FileTaskOptions, dict[str, str]]:
    """Return the task's options with the whole file as data, and comments on those that are examples."""
    if not issubclass(descriptor.options, FileTaskOptions):
        raise SpecError(
            f"the task {wish.task!r} reads its data in a way of its own, which --data cannot name; write the section "
            "tasks by hand (its plugin's documentation shows it)"
        )
    given = _given(wish.task_options, "--task-option")
    if "data" in given:
        raise SpecError("--task-option data=...: --data names the file, and the spec's options.data how it is split")
    fields = descriptor.options.model_fields
    examples = {
        key: value for key, value in descriptor.sample_options.items() if fields[key].is_required() and key not in given
    }
    data = {"kind": "split_shares", "path": str(wish.data.absolute()), "train": 1, "validation": 0, "test": 0}
    options = _checked(descriptor, {"data": data, **examples, **given}, "--task-option")
    for key, value in examples.items():
        say(f"note: {key}={flow(value)} is an example; put yours, here or by --task-option {key}=...")
    return options, dict.fromkeys(examples, "an example: put yours")


def _adapter_options(wish: Wish) -> dict[str, Any]:
    if wish.adapter is None:
        return {}
    options = {**_ADAPTER_OPTIONS.get(wish.adapter, {}), **_given(wish.adapter_options, "--adapter-option")}
    _checked(discover.adapter(wish.adapter), options, "--adapter-option")
    return options


def _given(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as plain data; keys may be dotted, and values are YAML."""
    root, problems = apply_overrides(MappingNode(items={}, mark=Mark()), texts)
    if problems:
        raise SpecError(
            [replace(p, path=(), message=p.message.replace("--set", flag, 1), hint="write KEY=VALUE") for p in problems]
        )
    data: Any = root.data()
    return dict(data)


def _checked(descriptor: Any, given: dict[str, Any], flag: str) -> Any:
    """Return options as the plugin's model."""
    context = PathContext(folder=str(Path.cwd()), env=os.environ)
    options, problems = check_options(descriptor, given, (), context)
    if options is None:
        raise SpecError([replace(p, path=(f"{flag} {p.dotted}",)) for p in problems])
    return options


def _stops_at_long_rows(options: FileTaskOptions) -> bool:
    field = type(options).model_fields.get("overlong")
    return field is not None and field.default == "error" and "overlong" not in options.model_fields_set
