"""What one rank of the suite does with a task: prepare its examples and train on them, as a worker does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from llama_scale.train.conformance.adapter_ranks import start
from llama_scale.train.conformance.report import Failed
from llama_scale.train.conformance.tiny import Tiny
from llama_scale.train.samples import make_task_samples
from llama_scale.train.validation import mean_loss


@dataclass(frozen=True, kw_only=True)
class TaskTrained:
    """What one rank saw of a training.

    Args:
        losses: Loss of each step.
        norms: Gradient norm of each step.
        held_out: Loss on the validation split afterwards.
        still: Names of trainable parameters of the task's head that did not change.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    held_out: float
    still: tuple[str, ...]


def train(tiny: Tiny, run: Path, steps: int) -> TaskTrained:
    """Train some steps on the task's rows.

    Args:
        tiny: The run.
        run: Its folder, where the examples are prepared.
        steps: Steps.
    """
    engine = start(tiny)
    spec, plan = tiny.spec(), tiny.plan()
    samples = make_task_samples(spec, split="train", run_dir=run)
    held_out = make_task_samples(spec, split="validation", run_dir=run)
    own = {p.name for p in plan.extra if p.trainable}
    before = {p.name: p.tensor.detach().clone() for p in engine.model_pieces() if p.name in own}
    dp_rank = plan.topology.coordinates(torch.distributed.get_rank()).dp_rank
    place = {"batch": plan.batch, "dp_rank": dp_rank, "dp_size": tiny.dp}
    losses, norms = [], []
    for step in range(steps):
        batch = samples.global_batch(step * plan.batch.global_batch, **place)
        result = engine.train_step(batch, spec.optimizer.lr)
        if result.skipped or not math.isfinite(result.loss):
            raise Failed(f"the loss of step {step + 1} is not finite")
        losses.append(result.loss)
        norms.append(result.grad_norm)
    still = [p.name for p in engine.model_pieces() if p.name in before and torch.equal(p.tensor, before[p.name])]
    return TaskTrained(
        losses=tuple(losses),
        norms=tuple(norms),
        held_out=mean_loss(engine, held_out.alone(0), limit=len(held_out), plan=plan, dp_rank=dp_rank),
        still=tuple(still),
    )
