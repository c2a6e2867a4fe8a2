"""The training loop, the same for every engine: resume, steps, metrics, validation, checkpoints, stopping."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llama_scale.checkpoint.retention import BEST_BY, ROWS_KEY
from llama_scale.errors import LaunchError
from llama_scale.train.checkpointing import Checkpointer, Position
from llama_scale.train.engine import Engine, MicroBatches, StepResult
from llama_scale.train.metrics import ProgressLine, StepRecord
from llama_scale.train.profile import StepProfiler
from llama_scale.train.schedule import learning_rate
from llama_scale.train.statistics import StepStatistics

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.validation import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopParts:
    """Hold what the loop works with on this rank.

    Args:
        engine: Model and optimizer.
        checkpointer: Saves the run's state.
        train_batch: First sample -> this replica's part of the global batch that begins there.
        validate: Evaluates the validation split (collective); None: the spec asks for none.
        stop_wish: Returns whether this rank was asked to stop.
        agree: Turns this rank's wish into every rank's decision (collective).
        sinks: Called with each step's record, on rank 0; empty elsewhere.
        profiler: Records chosen steps.
        statistics: Gathers what steps and evaluations tell of tasks and adapters (collective); None: nothing.
        tidy: Called after each step; None: nothing is to be tidied.
        flops_per_step: Model FLOPs of one step.
        peak_flops: FLOPs per second of all devices together; None if unknown.
    """

    engine: Engine
    checkpointer: Checkpointer
    train_batch: Callable[[int], MicroBatches]
    validate: Callable[[], Validation] | None
    stop_wish: Callable[[], bool]
    agree: Callable[[bool], bool]
    sinks: Sequence[Callable[[StepRecord], None]]
    profiler: StepProfiler
    flops_per_step: float
    peak_flops: float | None
    statistics: Callable[[], StepStatistics] | None = None
    tidy: Callable[[], None] | None = None


class NonFiniteError(LaunchError):
    """Report a loss or gradient norm that is not finite, where the spec says to stop."""


@dataclass(slots=True)
class _Skips:
    """Apply the spec's rule for steps whose loss or gradient norm is not finite."""

    on_nan: Literal["stop", "skip"]
    limit: int
    in_a_row: int = 0
    total: int = 0

    def check(self, step: int, result: StepResult) -> None:
        """Count a skipped step.

        Raises:
            NonFiniteError: The spec says stop, or too many were skipped in a row.
        """
        if not result.skipped:
            self.in_a_row = 0
            return
        what = f"step {step}: loss={result.loss}, grad_norm={result.grad_norm} is not finite"
        if self.on_nan == "stop":
            raise NonFiniteError(
                f"{what}; training stopped before the update (train.on_nan: stop). Lower optimizer.lr or lengthen "
                "schedule.warmup_steps, or go on from the last checkpoint with train.on_nan: skip"
            )
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row > self.limit:
            raise NonFiniteError(
                f"{what}; that makes {self.in_a_row} skipped steps in a row, train.max_skipped={self.limit} allows no "
                "more: lower optimizer.lr or look at the data of these steps"
            )


def train(spec: RunSpec, plan: RunPlan, parts: LoopParts, *, position: Position) -> Literal["done", "preempted"]:
    """Train from a position to the last step, or until asked to stop.

    A stop takes effect between two steps, the same on all ranks, and saves a checkpoint first.

    Raises:
        NonFiniteError: See ``train.on_nan``.
        LaunchError: Data, checkpoint or metrics failed.
    """
    if position.step >= plan.steps:
        logger.info("nothing to do: step %d is done already and the run has %d", position.step, plan.steps)
        return "done"
    skips = _Skips(on_nan=spec.train.on_nan, limit=spec.train.max_skipped)
    stopping = False
    while position.step < plan.steps and not stopping:
        best = best_validation_loss(position)
        position = _step(spec, plan, parts, position=position, skips=skips)
        stopping = parts.agree(parts.stop_wish())
        final = stopping or position.step == plan.steps
        improved = spec.checkpoint.keep_best and best_validation_loss(position) != best
        if final or improved or _every(spec.checkpoint.every_steps, position.step):
            parts.checkpointer.save(parts.engine, position, final=final)
        if parts.tidy is not None:
            parts.tidy()
    parts.profiler.close()
    if skips.total:
        logger.warning("%d updates were skipped because they were not finite", skips.total)
    return "preempted" if position.step < plan.steps else "done"


def _step(spec: RunSpec, plan: RunPlan, parts: LoopParts, *, position: Position, skips: _Skips) -> Position:
    """Do one step with its validation and records; return where training stands then."""
    step = position.step + 1
    lr = learning_rate(spec.schedule, step=step, steps=plan.steps, peak=spec.optimizer.lr)
    parts.profiler.before(step)
    begin = time.perf_counter()
    batch = parts.train_batch(position.samples)
    loaded = time.perf_counter()
    result = parts.engine.train_step(batch, lr)
    elapsed = time.perf_counter() - begin
    parts.profiler.after(step)
    samples = position.samples + plan.batch.global_batch
    statistics = evaluated = StepStatistics() if parts.statistics is None else parts.statistics()
    validation = None
    if parts.validate is not None and spec.validation is not None:
        due = step == plan.steps or _every(spec.validation.every_steps, step)
        validation = parts.validate() if due else None
        if due and parts.statistics is not None:
            evaluated = parts.statistics()
    validation_loss = None if validation is None else validation.loss
    compared = statistics if statistics.responsibilities else evaluated
    record = StepRecord(
        step=step,
        loss=result.loss,
        lr=lr,
        grad_norm=result.grad_norm,
        tokens=result.tokens,
        step_time_s=elapsed,
        data_s=loaded - begin,
        tokens_per_s=result.tokens / elapsed,
        mfu=None if parts.peak_flops is None else parts.flops_per_step / elapsed / parts.peak_flops,
        samples=samples,
        skipped=result.skipped,
        validation_loss=validation_loss,
        validation_losses={} if validation is None else dict(validation.task_losses),
        task_losses=statistics.task_losses,
        responsibilities=compared.responsibilities,
        task_tokens=statistics.task_tokens,
        responsibility_tokens=compared.responsibility_tokens,
    )
    for sink in parts.sinks:
        sink(record)
    skips.check(step, result)
    return Position(step=step, samples=samples, metrics=_metrics(position, validation))


BEST_KEY = "best_validation_loss"
"""Key of a position's metrics: the lowest validation loss measured up to there, over as many rows."""


def _metrics(position: Position, validation: Validation | None) -> dict[str, float | None]:
    """Return what a checkpoint remembers of validation: the last one, and the best."""
    kept = {key: position.metrics[key] for key in (BEST_KEY, ROWS_KEY) if key in position.metrics}
    if validation is None or not math.isfinite(validation.loss):
        return kept
    best, rows = kept.get(BEST_KEY), kept.get(ROWS_KEY)
    # Losses over other rows say nothing about these: those of version 0.1 were means of batch means.
    best = validation.loss if best is None or rows != validation.rows else min(best, validation.loss)
    return {BEST_BY: validation.loss, ROWS_KEY: validation.rows, BEST_KEY: best}


def best_validation_loss(position: Position) -> float | None:
    """Return the lowest validation loss up to a position, or None if none was measured."""
    return position.metrics.get(BEST_KEY)


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0


def log_progress(*, steps: int, every: int) -> Callable[[StepRecord], None]:
    """Return a sink that logs a line each ``every`` steps, at the first and the last, and at each validation."""
    line = ProgressLine(steps)

    def sink(record: StepRecord) -> None:
        text = line.text(record)
        if record.step % every == 0 or record.step in (1, steps) or record.skipped:
            logger.info(text)
        if record.validation_loss is not None:
            logger.info("step %d/%d  validation loss %.4f%s", record.step, steps, *_validation(record))

    return sink


def _validation(record: StepRecord) -> tuple[float, str]:
    """Return the validation loss and what to say of it: a mean over several tasks is no one's perplexity."""
    assert record.validation_loss is not None
    if len(record.validation_losses) > 1:
        return record.validation_loss, "".join(
            f"  {name} {loss:.4f}" for name, loss in record.validation_losses.items()
        )
    return record.validation_loss, f"  perplexity {math.exp(min(record.validation_loss, 700.0)):.2f}"
