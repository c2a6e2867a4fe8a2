"""The training loop, the same for every engine: resume, steps, metrics, validation, checkpoints, stopping."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from llama_scale.errors import LaunchError
from llama_scale.train.engine import MicroBatches, StepResult
from llama_scale.train.metrics import ProgressLine, StepRecord
from llama_scale.train.schedule import learning_rate

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import Engine
    from llama_scale.train.profile import StepProfiler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Say where training stands, after a step.

    Args:
        step: Steps done, skipped updates included.
        samples: Samples consumed: the next step begins with this one.
        best_validation_loss: Lowest one measured so far, or None.
    """

    step: int = 0
    samples: int = 0
    best_validation_loss: float | None = None


class Checkpoints(Protocol):
    """What the loop needs of ``train.checkpointing``; the methods are collective over the run's ranks."""

    def resume(self) -> Position:
        """Load the newest complete checkpoint into the engine; ``Position()`` if there is none."""
        ...

    def save(self, position: Position, *, validation_loss: float | None) -> None:
        """Save model, optimizer, random state and position; may go on writing in the background.

        Args:
            position: Where training stands.
            validation_loss: That of this very step, or None; ``checkpoint.keep_best`` compares it.
        """
        ...

    def wait(self) -> None:
        """Return when everything saved so far is complete on the disk, or raise what went wrong."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopParts:
    """Hold what the loop works with on this rank.

    Args:
        engine: Model and optimizer.
        checkpoints: Saving and resuming.
        train_batch: First sample -> this replica's part of the global batch that begins there.
        validate: Returns the validation loss (collective); None: the spec asks for none.
        stop_wish: Returns whether this rank was asked to stop.
        agree: Turns this rank's wish into every rank's decision (collective).
        sinks: Called with each step's record, on rank 0; empty elsewhere.
        profiler: Records chosen steps.
        flops_per_sample: Model FLOPs of one sample, forward and backward.
        peak_flops: FLOPs per second of all devices together; None if unknown.
    """

    engine: Engine
    checkpoints: Checkpoints
    train_batch: Callable[[int], MicroBatches]
    validate: Callable[[], float] | None
    stop_wish: Callable[[], bool]
    agree: Callable[[bool], bool]
    sinks: Sequence[Callable[[StepRecord], None]]
    profiler: StepProfiler
    flops_per_sample: float
    peak_flops: float | None


class NonFiniteError(LaunchError):
    """Report a loss or gradient norm that is not finite, where the spec says to stop."""


@dataclass(slots=True)
class _Skips:
    """Apply the spec's rule for steps whose loss or gradient norm is not finite."""

    on_nan: Literal["stop", "skip"]
    limit: int
    in_a_row: int = 0
    total: int = field(default=0)

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
                f"{what}; that are {self.in_a_row} skipped steps in a row, train.max_skipped={self.limit} allows no "
                "more: lower optimizer.lr or look at the data of these steps"
            )


def train(spec: RunSpec, plan: RunPlan, parts: LoopParts) -> Literal["done", "preempted"]:
    """Train from where the newest checkpoint stands to the last step, or until asked to stop.

    A stop takes effect between two steps, the same on all ranks, and saves a checkpoint first.

    Raises:
        NonFiniteError: See ``train.on_nan``.
        LaunchError: Data, checkpoint or metrics failed.
    """
    position = parts.checkpoints.resume()
    start = position.step
    if start >= plan.steps:
        logger.info("nothing to do: the checkpoint of step %d is the last of %d steps", start, plan.steps)
        return "done"
    if start:
        logger.info("resumed after step %d (%d samples)", start, position.samples)
    skips = _Skips(on_nan=spec.train.on_nan, limit=spec.train.max_skipped)
    stopping = False
    while position.step < plan.steps and not stopping:
        position = _step(spec, plan, parts, position=position, skips=skips)
        stopping = parts.agree(parts.stop_wish())
        # _step saves on its own schedule; a stop saves what it has not.
        if stopping and not _due(spec, plan, position.step):
            parts.checkpoints.save(position, validation_loss=None)
    parts.profiler.close()
    parts.checkpoints.wait()
    if skips.total:
        logger.warning("%d updates were skipped because they were not finite", skips.total)
    return "preempted" if position.step < plan.steps else "done"


def _step(spec: RunSpec, plan: RunPlan, parts: LoopParts, *, position: Position, skips: _Skips) -> Position:
    """Do one step and what belongs to it; return where training stands then."""
    step = position.step + 1
    lr = learning_rate(spec.schedule, step=step, steps=plan.steps, peak=spec.optimizer.lr)
    parts.profiler.before(step)
    begin = time.perf_counter()
    result = parts.engine.train_step(parts.train_batch(position.samples), lr)
    elapsed = time.perf_counter() - begin
    parts.profiler.after(step)
    samples = position.samples + plan.batch.global_batch
    record = StepRecord(
        step=step,
        loss=result.loss,
        lr=lr,
        grad_norm=result.grad_norm,
        tokens=result.tokens,
        step_time_s=elapsed,
        tokens_per_s=result.tokens / elapsed,
        mfu=_mfu(parts, samples=plan.batch.global_batch, seconds=elapsed),
        samples=samples,
        skipped=result.skipped,
    )
    validation_loss = None
    if parts.validate is not None and spec.validation is not None and _validates(spec, plan, step):
        validation_loss = parts.validate()
    for sink in parts.sinks:
        sink(replace(record, validation_loss=validation_loss))
    skips.check(step, result)
    best = position.best_validation_loss
    is_best = validation_loss is not None and (best is None or validation_loss < best)
    position = Position(step=step, samples=samples, best_validation_loss=validation_loss if is_best else best)
    if _due(spec, plan, step) or (is_best and spec.checkpoint.keep_best):
        parts.checkpoints.save(position, validation_loss=validation_loss)
    return position


def _due(spec: RunSpec, plan: RunPlan, step: int) -> bool:
    every = spec.checkpoint.every_steps
    return step == plan.steps or (every is not None and step % every == 0)


def _validates(spec: RunSpec, plan: RunPlan, step: int) -> bool:
    assert spec.validation is not None
    return step == plan.steps or step % spec.validation.every_steps == 0


def _mfu(parts: LoopParts, *, samples: int, seconds: float) -> float | None:
    """Return model FLOPs utilisation (Chowdhery et al., PaLM, 2022, appendix B), or None without a known peak."""
    if parts.peak_flops is None:
        return None
    return parts.flops_per_sample * samples / seconds / parts.peak_flops


def log_progress(*, steps: int, every: int) -> Callable[[StepRecord], None]:
    """Return a sink that logs a line each ``every`` steps, at the first and the last, and at each validation."""
    line = ProgressLine(steps)

    def sink(record: StepRecord) -> None:
        text = line.text(record)
        if record.step % every == 0 or record.step in (1, steps) or record.skipped:
            logger.info(text)
        if record.validation_loss is not None:
            perplexity = math.exp(min(record.validation_loss, 700.0))
            logger.info(
                "step %d/%d  validation loss %.4f  perplexity %.2f",
                record.step,
                steps,
                record.validation_loss,
                perplexity,
            )

    return sink
