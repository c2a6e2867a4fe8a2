"""The suite for tasks."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.extensions import discover
from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.conformance import CheckRequest
from llama_scale.extensions.examples import Example, FileTaskOptions
from llama_scale.extensions.task import Task, TaskContext
from llama_scale.spec.added import Added, added_by
from llama_scale.train.conformance import light, task_encoding, task_ranks
from llama_scale.train.conformance.adapters import LOSS, NORM, same_curve
from llama_scale.train.conformance.ranks import on_ranks
from llama_scale.train.conformance.report import Failed, NotApplicable, Report
from llama_scale.train.conformance.tiny import Tiny, worst
from llama_scale.train.conformance.tokenizer import VOCABULARY, write_tokenizer

STEPS, SEQ_LENGTH, EXAMPLES = 4, 512, 16
HELD_OUT = 2e-4
"""Relative tolerance of the validation loss after training: weights have gone apart by rounding."""
LAYOUTS = (
    ("tensor parallel 2 equals 1", {"tp": 2}),
    ("sequence parallel equals one process", {"tp": 2, "sequence": True}),
    ("pipeline parallel 2 equals 1", {"pp": 2}),
    ("data parallel 2 equals 1", {"dp": 2}),
)


def check(report: Report, request: CheckRequest, folder: Path) -> None:
    """Make all checks of one task."""
    descriptor = discover.task(request.name)
    report.check("light descriptor", partial(light.descriptor_is_light, request))
    report.check("implementation", partial(light.implementation_of, request, descriptor, Task))
    request = with_sample(request, descriptor, folder)
    added = report.check("options and parameters", partial(_parameters, request, descriptor))
    if added is None:
        return
    suite = _Suite(request, descriptor, added, folder)
    examples = report.check("examples", suite.read)
    if examples is None or report.check("features", partial(suite.features, examples)) is None:
        return
    report.check("predictions and scores", partial(suite.predicts, examples))
    single = report.check("trains", suite.trains)
    if single is not None:
        for name, layout in LAYOUTS:
            report.check(name, partial(suite.layout, replace(suite.tiny, **layout), single))


def with_sample(request: CheckRequest, descriptor: TaskDescriptor, folder: Path) -> CheckRequest:
    """Let options that are not given be the descriptor's own, and those without files name one with its sample rows."""
    request = replace(request, options=request.options or descriptor.sample_options)
    reads_files = issubclass(descriptor.options, FileTaskOptions)
    if not reads_files or "data" in request.options or not descriptor.sample:
        return request
    path = folder / "sample.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in descriptor.sample), encoding="utf-8")
    data = {"kind": "split_files", "train": str(path), "validation": str(path), "test": str(path)}
    return replace(request, options={**request.options, "data": data})


def _parameters(request: CheckRequest, descriptor: TaskDescriptor) -> list[Added]:
    use = light.use_of(request, "tasks", folder=Path.cwd())
    shape = Tiny(vocab_size=VOCABULARY).plan().shape
    added: list[Added] = light.same_twice(lambda: added_by(use, shape, adapters=0))
    if descriptor.head == "lm" and added:
        raise Failed(f"head is lm, and it adds {added[0].short_name}: set head to own")
    return added


class _Suite:
    """The checks that need examples.

    Args:
        request: The plugin and its options.
        descriptor: Its descriptor.
        added: What its head adds.
        folder: Room for a tokenizer and prepared examples.
    """

    def __init__(self, request: CheckRequest, descriptor: TaskDescriptor, added: Sequence[Added], folder: Path) -> None:
        tokenizer = write_tokenizer(folder / "tokenizer")
        # Paths as a loaded spec has them: from the working directory of whoever runs the suite.
        use = light.use_of(request, "tasks", folder=Path.cwd())
        assert use.options is not None
        options = use.options.model_dump(mode="json", by_alias=True)
        self.tiny = Tiny(
            vocab_size=VOCABULARY,
            seq_length=SEQ_LENGTH,
            slot=2,
            sections={
                "tasks": ({"name": "probe", "kind": request.name, "options": options},),
                "data": {"kind": "tasks", "seq_length": SEQ_LENGTH},
                "tokenizer": {"kind": "hf", "path": str(tokenizer)},
                "optimizer": {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-4},
            },
        )
        self.descriptor = descriptor
        self.added = added
        self.folder = folder
        sizes = {name: getattr(self.tiny.spec().model, name) for name in ("hidden_size", "vocab_size", "num_layers")}
        context = TaskContext(
            name="probe", tokenizer=TaskTokenizer(tokenizer), seq_length=SEQ_LENGTH, sizes=sizes, seed=7
        )
        self.task: Task = discover.implementation(descriptor)(use.options, context)

    def read(self) -> list[Example]:
        """Return the first examples of the training split; there is one at least."""
        found = list(itertools.islice(self.task.examples("train"), EXAMPLES))
        if not found:
            raise Failed("the training split has no example")
        return found

    def features(self, examples: Sequence[Example]) -> str:
        """See ``task_encoding.check_features``."""
        return task_encoding.check_features(
            self.task, examples, own_head=self.descriptor.head == "own", seq_length=SEQ_LENGTH
        )

    def predicts(self, examples: Sequence[Example]) -> str:
        """See ``task_encoding.check_outcomes``."""
        generator = torch.Generator().manual_seed(2)
        head = {p.short_name: torch.randn(p.shape, generator=generator) for p in self.added}
        model = task_encoding.StandIn(head, self.tiny.spec().model.hidden_size)
        return task_encoding.check_outcomes(self.task, examples, model)

    def trains(self) -> task_ranks.TaskTrained:
        """The loss is finite, and every trainable parameter of the head moves."""
        [found] = self._train(self.tiny)
        if found.still:
            raise Failed(f"{found.still[0]} got no gradient in {STEPS} steps ({len(found.still)} such parameters)")
        return found

    def layout(self, tiny: Tiny, single: task_ranks.TaskTrained) -> str:
        """Losses and gradient norms on another layout are those of one process."""
        for parameter in self.added:
            if parameter.tp_dim is not None and parameter.shape[parameter.tp_dim] % tiny.tp:
                raise NotApplicable(f"{parameter.short_name} cannot be divided by {tiny.tp}")
        for one in self._train(tiny):
            same_curve(one.losses, single.losses, "loss", LOSS)
            same_curve(one.norms, single.norms, "gradient norm", NORM)
            same_curve([one.held_out], [single.held_out], "validation loss", HELD_OUT)
        return f"loss within {worst(one.losses, single.losses):.1e}"

    def _train(self, tiny: Tiny) -> list[Any]:
        # A folder each: with fewer rows a slot, other rows may be packed together, but never other samples.
        with tempfile.TemporaryDirectory(dir=self.folder) as run:
            return on_ranks(tiny.world, task_ranks.train, tiny, Path(run), STEPS)
