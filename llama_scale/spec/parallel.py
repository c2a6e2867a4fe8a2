"""Section ``parallel``: how data and model are divided over processes."""

from __future__ import annotations

from pydantic import Field, field_validator

from llama_scale.spec.base import PositiveInt, Section


class Parallel(Section):
    """Degrees of parallelism; their product is the number of processes."""

    data: PositiveInt = Field(1, description="Replicas that each train on their own part of the batch (dp).")
    tensor: PositiveInt = Field(1, description="Processes that share each layer's matrices (tp).")
    pipeline: PositiveInt = Field(1, description="Stages that the layers are divided into (pp).")
    virtual_stages: PositiveInt = Field(1, description="Interleaved model chunks per pipeline stage (vp).")
    sequence: bool = Field(False, description="Shard norms and residuals along the sequence (needs tensor > 1).")
    stage_layers: tuple[PositiveInt, ...] | None = Field(
        None,
        description="Layers of each stage, first to last, when they are not equal; virtual stages: chunk by chunk, "
        "pipeline x virtual_stages numbers.",
    )
    context: int = Field(1, description="Context parallelism: only 1 for now.", json_schema_extra={"const": 1})
    expert: int = Field(
        1, description="Expert parallelism: only 1 (the models are dense).", json_schema_extra={"const": 1}
    )

    @field_validator("context")
    @classmethod
    def _context_refused(cls, value: int) -> int:
        if value != 1:
            raise ValueError(
                f"context={value}: context parallelism is not supported yet; leave it at 1 and use sequence: true "
                "with tensor > 1, or recompute, for long sequences"
            )
        return value

    @field_validator("expert")
    @classmethod
    def _expert_refused(cls, value: int) -> int:
        if value != 1:
            raise ValueError(f"expert={value}: the models are dense LLaMAs without experts; leave it at 1")
        return value

    @property
    def world_size(self) -> int:
        """Number of processes of the run."""
        return self.data * self.tensor * self.pipeline
