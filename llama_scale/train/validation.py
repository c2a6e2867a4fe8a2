"""Validation loss during training: the same rows at every evaluation, each counted once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llama_scale.train.samples import SampleSource, make_samples, make_task_samples

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Report one evaluation.

    Args:
        loss: Summed loss over counted tokens; of several tasks, the mean of their losses by their weights.
        rows: Rows that it was measured on.
        task_losses: Each task's own: its summed loss over what it counts.
    """

    loss: float
    rows: int
    task_losses: Mapping[str, float] = field(default_factory=dict)


def make_validation(
    spec: RunSpec, plan: RunPlan, engine: Engine, *, dp_rank: int, run_dir: Path
) -> Callable[[], Validation] | None:
    """Return a function that gives the loss over the first rows of the split; each task has rows of its own.

    Returns:
        None if the spec asks for no validation.

    Raises:
        DataError: The validation split is empty or shorter than one sample.
    """
    if spec.validation is None:
        return None
    limit = spec.validation.batches * plan.batch.global_batch

    def loss_of(samples: SampleSource) -> float:
        return mean_loss(engine, samples, limit=limit, plan=plan, dp_rank=dp_rank)

    if spec.data.kind != "tasks":
        samples = make_samples(spec, split="validation", run_dir=run_dir)
        rows = _count_rows({"": samples}, limit=limit)
        return lambda: Validation(loss=loss_of(samples), rows=rows)
    by_task = make_task_samples(spec, split="validation", run_dir=run_dir)
    alone = {task.name: by_task.alone(number) for number, task in enumerate(by_task.tasks)}
    weights = {task.name: task.weight for task in by_task.tasks}
    rows = _count_rows(alone, limit=limit)

    def validate() -> Validation:
        losses = {name: loss_of(of_task) for name, of_task in alone.items()}
        total = sum(weights[name] * loss for name, loss in losses.items()) / sum(weights.values())
        return Validation(loss=total, rows=rows, task_losses=losses)

    return validate


def mean_loss(engine: Engine, samples: SampleSource, *, limit: int, plan: RunPlan, dp_rank: int) -> float:
    """Return the loss over at most ``limit`` rows, each counted once: the summed loss over the counted tokens.

    How the rows are dealt to batches, micro-batches and replicas does not change it. NaN if no token counts.

    Args:
        engine: Evaluates; collective.
        samples: The rows, the same on all ranks.
        limit: Most rows.
        plan: Sizes of batches, replicas.
        dp_rank: This rank's replica.
    """
    total, tokens = 0.0, 0
    for batch in samples.evaluation(limit, batch=plan.batch, dp_rank=dp_rank, dp_size=plan.topology.dp_size):
        found = engine.evaluate(batch)
        total += found.total
        tokens += found.tokens
    return total / tokens if tokens else math.nan


def _count_rows(sources: Mapping[str, SampleSource], *, limit: int) -> int:
    """Return the rows of an evaluation, and log those of each task."""
    counts = {name: min(limit, len(samples)) for name, samples in sources.items()}
    for name, rows in counts.items():
        whole = "all there are" if rows == len(sources[name]) else f"of {len(sources[name]):,}"
        logger.info("validation: %s rows%s, %s", f"{rows:,}", f" of task {name}" if name else "", whole)
    return sum(counts.values())
