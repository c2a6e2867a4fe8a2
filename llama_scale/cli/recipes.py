"""What `init` proposes to train and how: the sections of a spec that do not depend on the layout, as commented text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_scale.spec.model import ModelShape
from llama_scale.spec.section_text import flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Parts of a spec's text.

    Args:
        data: Sections ``data``, ``tasks`` and ``adapters``.
        train: Section ``train``.
        optimizer: Sections ``optimizer`` and ``schedule``.
        saving: Sections ``checkpoint`` and ``validation``.
        rows_a_step: Rows that a step should have; None: as many as keep the pipeline busy.
    """

    data: str
    train: str
    optimizer: str
    saving: str
    rows_a_step: int | None = None


_CORPUS = """\
data:
  kind: indexed
  seq_length: {seq_length}
  blend:
    # Prefix of a .bin/.idx pair, from this file's folder: `llama-scale data build` writes one.
    - path: data/train
"""


def pretraining(shape: ModelShape, *, cuda: bool) -> Recipe:
    """Return the recipe for token files: what a spec trains on where no task is named."""
    return Recipe(
        data=_CORPUS.format(seq_length=min(4096 if cuda else 512, shape.max_position_embeddings)),
        train="train:\n  steps: 1000             # or tokens: 1e9, or epochs: 1\n",
        optimizer="optimizer:\n  lr: 3e-4\nschedule:\n  kind: cosine\n  warmup_steps: 100\n",
        saving="checkpoint:\n  every_steps: 100\n  keep_last: 2\nvalidation:\n  every_steps: 100\n",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """Choices of a fine-tuning spec.

    Args:
        task: Kind of the task.
        task_options: Its options as plain data, ``data`` included; paths are absolute.
        comments: Option of the task -> what to say about it.
        adapter: Kind of the adapter; None: the whole model trains.
        adapter_options: The adapter's options that are written.
        seq_length: Tokens of a row.
        rows_a_step: Rows of a step.
        steps: About how many steps the run has.
        validation: Whether the validation split holds rows.
    """

    task: str
    task_options: Mapping[str, Any]
    comments: Mapping[str, str]
    adapter: str | None
    adapter_options: Mapping[str, Any]
    seq_length: int
    rows_a_step: int
    steps: int
    validation: bool


EPOCHS = 3
"""Passes over the rows that `init` proposes."""
_LEARNING_RATES = {"lora": "2e-4", "ia3": "3e-3", "bottleneck": "1e-4", "prefix": "1e-3"}
"""Usual peak rates: QLoRA's (arXiv:2305.14314), IA3's (2205.05638), bottleneck adapters' (1902.00751), prefixes'."""
_FULL_LEARNING_RATE = "2e-5"


def finetuning(choices: FineTuning) -> Recipe:
    """Return the recipe for one task, with an adapter or for the whole model."""
    rate = "2e-4" if choices.adapter else _FULL_LEARNING_RATE
    rate = _LEARNING_RATES.get(choices.adapter or "", rate)
    every = max(1, min(100, choices.steps // 5))
    return Recipe(
        data=_task_sections(choices),
        train="train:\n  from: weights           # the folder's; scratch: random ones\n"
        f"  epochs: {EPOCHS}               # passes over the rows; or steps: N\n",
        optimizer=f"optimizer:\n  lr: {rate}\n  weight_decay: 0\n"
        f"schedule:\n  kind: cosine\n  warmup_steps: {max(1, min(100, choices.steps * 3 // 100))}\n",
        saving=f"checkpoint:\n  every_steps: {every}\n  keep_last: 2\n"
        + (f"validation:\n  every_steps: {every}\n" if choices.validation else ""),
        rows_a_step=choices.rows_a_step,
    )


def _task_sections(choices: FineTuning) -> str:
    lines = [
        "# Examples are packed into rows of this length; they do not see each other.",
        "data:",
        "  kind: tasks",
        f"  seq_length: {choices.seq_length}",
        "",
        "tasks:",
        f"  - name: {choices.task}",
        f"    kind: {choices.task}",
        "    options:",
    ]
    for key, value in choices.task_options.items():
        comment = choices.comments.get(key)
        lines += [f"      {key}: {flow(value)}{f'    # {comment}' if comment else ''}"]
    if choices.adapter is not None:
        options = f", options: {flow(choices.adapter_options)}" if choices.adapter_options else ""
        lines += [
            "",
            "# Only the adapter trains. Without this section the whole model does.",
            "adapters:",
            f"  - {{name: {choices.adapter}, kind: {choices.adapter}, task: {choices.task}{options}}}",
        ]
    return "\n".join(lines) + "\n"
