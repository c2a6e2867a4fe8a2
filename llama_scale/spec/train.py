"""Sections ``train``, ``validation`` and ``restart``: how long, how checked, what after a fault."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import NonNegativeInt, PositiveFloat, PositiveInt, Section


class Train(Section):
    """What the training starts from and its length: exactly one of steps, tokens and epochs."""

    steps: PositiveInt | None = Field(None, description="Optimizer steps.")
    tokens: PositiveInt | None = Field(None, description="Token budget; steps = ceil(tokens / tokens per step).")
    epochs: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = Field(
        None,
        description="Passes over all training rows, also 0.5; steps = ceil(epochs x rows / batch.global). `launch` and "
        "`plan` count the rows, after packing.",
    )
    from_: Literal["weights", "scratch"] | None = Field(
        None,
        alias="from",
        description="Where the weights come from. weights: the folder that model.init_from names, else model.path; "
        "scratch: drawn from the seed. Default: weights where model.init_from is given and for kind: hf with adapters "
        "or tasks, else scratch; adapters on a base drawn from the seed must be asked for.",
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="A loss or gradient norm that is not finite: stop with the step named, or skip the update.",
    )
    max_skipped: PositiveInt = Field(10, description="With on_nan: skip, consecutive skipped steps before stopping.")
    timeout_s: PositiveInt = Field(600, description="Process-group timeout: a collective that takes longer fails.")


class Validation(Section):
    """Validation loss during training, on the validation split."""

    every_steps: PositiveInt = Field(description="Steps between evaluations.")
    batches: PositiveInt = Field(
        10, description="Most rows of an evaluation, in global batches (of each task); no row is counted twice."
    )


class Restart(Section):
    """What happens when a rank fails."""

    max: NonNegativeInt = Field(0, description="Restarts from the newest complete checkpoint before giving up.")
    only_if_progress: bool = Field(True, description="Do not restart twice from the same checkpoint.")
    min_nodes: PositiveInt | None = Field(None, description="Go on with fewer hosts, at least this many.")
    hang_factor: PositiveFloat | None = Field(
        20.0,
        description="No step for so many times the median step: stacks of all ranks are written, the attempt ends; "
        "null: never.",
    )
    hang_min_s: PositiveFloat = Field(
        300.0,
        description="... but not before so many seconds without a step (checkpoints, validation); five times as "
        "many before an attempt's first step.",
    )
