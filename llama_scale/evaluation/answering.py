"""An opened model with the tasks of its spec: who answers which task, and with which head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from llama_scale.convert.folders import run_of
from llama_scale.convert.foreign_code import CONSENT, foreign_code
from llama_scale.convert.heads import HEADS
from llama_scale.convert.reference import require_text_tokenizer
from llama_scale.data.task_tokenizer import TaskTokenizer, starts_texts
from llama_scale.errors import LaunchError
from llama_scale.evaluation.assembled import AssembledModel, Sampling
from llama_scale.evaluation.source import Source
from llama_scale.evaluation.tasks import make_task
from llama_scale.extensions.task import Task

__all__ = ["Answering", "Sampling", "answering"]

OWN = "own"
"""Who answers unless the user says otherwise: the adapter that serves the task, or the whole tuned model."""


@dataclass(slots=True, kw_only=True)
class Answering:
    """A loaded model and what is known of its tasks.

    Args:
        source: Where it came from.
        model: The loaded model.
        tokenizer: What the tasks read text with: the spec's, or the folder's own.
        trust_code: Run Python code of the folder that no export writes.
    """

    source: Source
    model: AssembledModel
    tokenizer: TaskTokenizer
    trust_code: bool = False
    _tasks: dict[str, Task] = field(default_factory=dict)

    def task_names(self) -> list[str]:
        """Return the tasks of the spec.

        Raises:
            LaunchError: There is no spec, or it has no tasks.
        """
        spec = self.source.spec
        if spec is None:
            raise LaunchError(f"{self.source.folder} says nothing of tasks; name a spec that does: --spec SPEC")
        if not spec.tasks:
            raise LaunchError(f"the spec of run {spec.name!r} has no tasks; name one that does: --spec SPEC")
        return [task.name for task in spec.tasks]

    def task(self, name: str) -> Task:
        """Return a task by its name in the spec.

        Raises:
            LaunchError: There is none.
        """
        self.task_names()
        assert self.source.spec is not None
        if name not in self._tasks:
            self._tasks[name] = make_task(self.source.spec, name, tokenizer=self.tokenizer)
        return self._tasks[name]

    def text_tokenizer(self) -> TaskTokenizer:
        """Return the folder's own tokenizer.

        Raises:
            ConvertError: There is none.
        """
        require_text_tokenizer(self.source.folder)
        return TaskTokenizer(self.source.folder, trust_code=self.trust_code)

    def trained_system(self) -> str | None:
        """Return the system message that the run's only task of kind ``sft`` puts in front of conversations, if any."""
        tasks = [] if self.source.spec is None else [task for task in self.source.spec.tasks if task.kind == "sft"]
        found = tasks[0].options.get("system") if len(tasks) == 1 else None
        return found if isinstance(found, str) else None

    def choose(self, who: str, *, task: str | None) -> str:
        """Let somebody answer from now on; returns the name.

        Args:
            who: ``base``, ``mixture``, an adapter's name, or ``own``.
            task: The task whose head is used, and whose adapter is its own.

        Raises:
            LaunchError: There is no such adapter, or several could be meant.
        """
        chosen = self._own(task) if who == OWN else who
        head = self._head(task) if task is not None else {}
        self.model.use(None if chosen == "model" else chosen, head=head)
        return chosen

    def _own(self, task: str | None) -> str:
        spec = self.source.spec
        if not self.model.adapters:
            return "model"
        if spec is not None and task is not None:
            serving = [adapter.name for adapter in spec.adapters if adapter.task == task]
            if len(serving) == 1:
                return serving[0]
            if spec.mixture is not None:
                return "mixture"
        if len(self.model.adapters) == 1:
            return self.model.adapters[0]
        raise LaunchError(
            f"no adapter serves task {task!r} alone; say who answers: {', '.join(('base', *self.model.adapters))}"
        )

    def _head(self, task: str) -> Mapping[str, torch.Tensor]:
        path = self.source.folder / HEADS / f"{task}.safetensors"
        return {name: tensor.float() for name, tensor in load_file(path).items()} if path.is_file() else {}


def answering(source: Source, *, sampling: Sampling, batch_size: int, trust_code: bool) -> Answering:
    """Load an opened model.

    Args:
        source: From ``open_source``.
        sampling: How it chooses tokens.
        batch_size: Sequences of one forward pass.
        trust_code: Run Python code of the folder that no export writes.

    Raises:
        LaunchError: The folder brings such code, and the user has not said that it may run.
        ConvertError: transformers cannot load it.
    """
    foreign = foreign_code(source.folder, every_file=True) if source.run is not None else None
    if foreign is not None and not trust_code:
        raise LaunchError(
            f"{source.folder} brings code of its own: {foreign}; remove the folder, which is then made anew from the "
            f"checkpoint, or {CONSENT}"
        )
    named = None if source.spec is None else source.spec.tokenizer
    run = None if source.checkpoint is None else run_of(source.checkpoint)
    tokenizer = TaskTokenizer(
        source.folder if named is None else Path(named.path),
        starts_texts=run is None or starts_texts(run / "examples"),
    )
    model = AssembledModel(
        source.folder,
        sampling=sampling,
        batch_size=batch_size,
        end_id=None if named is None else tokenizer.end_id,
        trust_code=trust_code,
    )
    return Answering(source=source, model=model, tokenizer=tokenizer, trust_code=trust_code)
