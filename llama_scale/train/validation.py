"""Validation loss during training: the same samples at every evaluation, so that its values can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llama_scale.train.samples import SampleSource, make_samples, make_task_samples

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Report one evaluation.

    Args:
        loss: Mean loss; of several tasks, the mean of their losses by their weights.
        task_losses: Each task's own mean loss.
    """

    loss: float
    task_losses: Mapping[str, float] = field(default_factory=dict)


def make_validation(
    spec: RunSpec, plan: RunPlan, engine: Engine, *, dp_rank: int, run_dir: Path
) -> Callable[[], Validation] | None:
    """Return a function that gives the mean loss over the first ``validation.batches`` global batches of the split.

    A split with fewer samples than that begins anew (in another order). Each task has batches of its own.

    Returns:
        None if the spec asks for no validation.

    Raises:
        DataError: The validation split is empty or shorter than one sample.
    """
    if spec.validation is None:
        return None
    batches = spec.validation.batches

    def mean_loss(samples: SampleSource) -> float:
        losses = []
        for number in range(batches):
            batch = samples.global_batch(
                number * plan.batch.global_batch, batch=plan.batch, dp_rank=dp_rank, dp_size=plan.topology.dp_size
            )
            losses.append(engine.evaluate(batch))
        return sum(losses) / batches

    if spec.data.kind != "tasks":
        samples = make_samples(spec, split="validation", run_dir=run_dir)
        return lambda: Validation(loss=mean_loss(samples))
    by_task = make_task_samples(spec, split="validation", run_dir=run_dir)
    alone = {task.name: by_task.alone(number) for number, task in enumerate(by_task.tasks)}
    weights = {task.name: task.weight for task in by_task.tasks}

    def validate() -> Validation:
        losses = {name: mean_loss(of_task) for name, of_task in alone.items()}
        total = sum(weights[name] * loss for name, loss in losses.items()) / sum(weights.values())
        return Validation(loss=total, task_losses=losses)

    return validate
