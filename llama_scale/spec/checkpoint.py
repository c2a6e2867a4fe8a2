"""Section ``checkpoint``: when state is saved, how much is kept."""

from __future__ import annotations

from pydantic import Field

from llama_scale.spec.base import PositiveInt, Section


class Checkpoint(Section):
    """Saving of model, optimizer, random state and data position."""

    every_steps: PositiveInt | None = Field(None, description="Save each so many steps; the last step always saves.")
    keep_last: PositiveInt = Field(2, description="Complete checkpoints to keep; older ones are removed.")
    keep_best: bool = Field(False, description="Keep the checkpoint of the lowest validation loss as well.")
    asynchronous: bool = Field(True, description="Write in the background while training goes on.")
    save_optimizer: bool = Field(True, description="Save optimizer state (without it a run cannot be resumed).")
