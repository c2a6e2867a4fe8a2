"""Validation loss during training: the same samples at every evaluation, so that its values can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llama_scale.train.data import Samples

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import Engine


def make_validation(spec: RunSpec, plan: RunPlan, engine: Engine, *, dp_rank: int) -> Callable[[], float] | None:
    """Return a function that gives the mean loss over the first ``validation.batches`` global batches of the split.

    A split with fewer samples than that begins anew (in another order).

    Returns:
        None if the spec asks for no validation.

    Raises:
        DataError: The validation split is empty or shorter than one sample.
    """
    if spec.validation is None:
        return None
    samples = Samples(spec.data, split="validation", seed=spec.seed, vocab_size=plan.shape.vocab_size)
    batches, size = spec.validation.batches, plan.batch.global_batch

    def validate() -> float:
        losses = []
        for number in range(batches):
            batch = samples.global_batch(
                number * size, batch=plan.batch, dp_rank=dp_rank, dp_size=plan.topology.dp_size
            )
            losses.append(engine.evaluate(batch))
        return sum(losses) / batches

    return validate
