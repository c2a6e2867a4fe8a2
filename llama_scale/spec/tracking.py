"""Section ``tracking``: where metrics go beside metrics.jsonl, which is always written."""

from __future__ import annotations

from pydantic import Field

from llama_scale.spec.base import PositiveInt, Section


class Wandb(Section):
    """Weights & Biases (pip install 'llama-scale[wandb]'); the key comes from the environment, never from here."""

    project: str = Field(description="Project name.")
    entity: str | None = Field(None, description="Team or user.")


class Mlflow(Section):
    """MLflow (pip install 'llama-scale[mlflow]')."""

    experiment: str = Field(description="Experiment name.")
    uri: str | None = Field(None, description="Tracking server; default: MLFLOW_TRACKING_URI.")


class Tracking(Section):
    """Metric sinks."""

    log_every_steps: PositiveInt = Field(1, description="Steps between printed lines; metrics.jsonl has every step.")
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder.")
    wandb: Wandb | None = Field(None, description="Send metrics to Weights & Biases.")
    mlflow: Mlflow | None = Field(None, description="Send metrics to MLflow.")
