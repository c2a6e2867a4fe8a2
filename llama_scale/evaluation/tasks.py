"""Score a model on a task's examples: predictions, metrics and confidence intervals, several models side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import DataError, LaunchError
from llama_scale.evaluation.bootstrap import Scores, resamples, score
from llama_scale.extensions import discover
from llama_scale.extensions.examples import SPLITS, Example, SplitName
from llama_scale.extensions.task import Model, Outcome, Task, TaskContext
from llama_scale.spec.model import InlineModel
from llama_scale.spec.nearby import either
from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How an evaluation is made; equal protocols look at the same examples and resamples.

    Args:
        split: Which part of the task's data.
        limit: Most examples; more are cut to a subset that depends on the seed alone. None: all.
        seed: Of subset and resamples.
        resamples: Bootstrap samples.
        level: Probability of the confidence intervals.
    """

    split: SplitName = "test"
    limit: int | None = None
    seed: int = 0
    resamples: int = 1000
    level: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model's scores on one task.

    Args:
        task: Name of the task.
        model: ``base``, an adapter's name, ``mixture`` or ``model``.
        outcomes: What came out for each example.
        scores: The metrics.
        seconds: Wall time of the predictions.
    """

    task: str
    model: str
    outcomes: Sequence[Outcome]
    scores: Scores
    seconds: float


def make_task(spec: RunSpec, name: str, *, tokenizer: TaskTokenizer) -> Task:
    """Return a task of a spec.

    Args:
        spec: Resolved spec.
        name: The task's name in it.
        tokenizer: What it reads text with.

    Raises:
        LaunchError: The spec has no such task.
        PluginError: The kind of task is broken.
    """
    entry = next((task for task in spec.tasks if task.name == name), None)
    if entry is None:
        known = ", ".join(task.name for task in spec.tasks) or "none"
        raise LaunchError(f"the spec has no task {name!r}; its tasks: {known}")
    descriptor = discover.task(entry.kind)
    model = spec.model
    assert isinstance(model, InlineModel), "specs are resolved when they are loaded"
    context = TaskContext(
        name=name,
        tokenizer=tokenizer,
        seq_length=spec.data.seq_length,
        sizes={"hidden_size": model.hidden_size, "vocab_size": model.vocab_size, "num_layers": model.num_layers},
        seed=spec.seed,
    )
    made: Task = discover.implementation(descriptor)(discover.read_options(descriptor, entry.options), context)
    return made


def choose_examples(task: Task, protocol: Protocol) -> list[Example]:
    """Return the examples that a protocol looks at, in the order of the file.

    Raises:
        DataError: The split has no examples.
    """
    examples = list(task.examples(protocol.split))
    if not examples:
        others = [split for split in SPLITS if split != protocol.split and _holds_examples(task, split)]
        remedy = f"use --split {either(others)}" if others else "its files hold none at all"
        raise DataError(f"task {task.context.name}: its {protocol.split} split has no examples; {remedy}")
    if protocol.limit is None or protocol.limit >= len(examples):
        return examples
    # Raw bits: NumPy promises the same order for ever only for them.
    order = np.argsort(np.random.PCG64(protocol.seed).random_raw(len(examples)), kind="stable")
    return [examples[i] for i in sorted(order[: protocol.limit])]


def _holds_examples(task: Task, split: SplitName) -> bool:
    try:
        return any(True for _ in task.examples(split))
    except DataError:  # the split has no file
        return False


def evaluate(
    task: Task,
    model: Model,
    examples: Sequence[Example],
    *,
    name: str,
    protocol: Protocol,
    on_outcome: Callable[[int], None] = lambda _done: None,
) -> Result:
    """Let a model answer examples and score what it says.

    Args:
        task: The task.
        model: Who answers.
        examples: At least one.
        name: What to call the model.
        protocol: How.
        on_outcome: Told the number of examples done.
    """
    begin = time.perf_counter()
    outcomes = []
    for outcome in task.predict(model, examples):
        outcomes.append(outcome)
        on_outcome(len(outcomes))
    seconds = time.perf_counter() - begin
    draws = resamples(len(outcomes), count=protocol.resamples, seed=protocol.seed)
    scores = score(outcomes, task.corpus_scores, example_scores=[o.scores for o in outcomes], draws=draws)
    return Result(task=task.context.name, model=name, outcomes=outcomes, scores=scores, seconds=seconds)


def to_data(results: Sequence[Result], protocol: Protocol) -> list[dict[str, Any]]:
    """Return results as JSON-able data; each is compared with the first one of its task."""
    first: dict[str, Result] = {}
    return [
        {
            "task": result.task,
            "model": result.model,
            "examples": len(result.outcomes),
            "seconds": round(result.seconds, 3),
            "metrics": _metrics(result, first.setdefault(result.task, result), protocol),
        }
        for result in results
    ]


def _metrics(result: Result, reference: Result, protocol: Protocol) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in result.scores.values:
        interval = result.scores.interval(name, level=protocol.level)
        found[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
        if reference is not result and name in reference.scores.values:
            gain = result.scores.gain(reference.scores, name, level=protocol.level)
            found[name]["gain"] = {"over": reference.model, "value": gain.value, "low": gain.low, "high": gain.high}
    return found
