"""Section ``batch``: any two of global, micro and accumulation; the third follows."""

from __future__ import annotations

from pydantic import Field

from llama_scale.spec.base import PositiveInt, Section


class Batch(Section):
    """Batch sizes in samples (sequences): global = micro x accumulation x data_parallel."""

    global_: PositiveInt | None = Field(
        None, alias="global", description="Samples per optimizer step over all processes."
    )
    micro: PositiveInt | None = Field(None, description="Samples per forward pass of one process.")
    accumulation: PositiveInt | None = Field(None, description="Micro-batches per step and data parallel replica.")
