"""The whole spec: one file, one run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from llama_scale.spec.adapters import Adapter, Mixture, Task
from llama_scale.spec.base import Name, NonNegativeInt, Section
from llama_scale.spec.batch import Batch
from llama_scale.spec.checkpoint import Checkpoint
from llama_scale.spec.cluster import Cluster
from llama_scale.spec.data import Data
from llama_scale.spec.engine import Engine
from llama_scale.spec.launcher import Launcher, LocalLauncher
from llama_scale.spec.model import Model
from llama_scale.spec.optimizer import AdamW, Optimizer
from llama_scale.spec.parallel import Parallel
from llama_scale.spec.precision import Precision
from llama_scale.spec.recompute import NoRecompute, Recompute
from llama_scale.spec.schedule import ConstantSchedule, Schedule
from llama_scale.spec.tokenizer import Tokenizer
from llama_scale.spec.tracking import Tracking
from llama_scale.spec.train import Restart, Train, Validation


class RunSpec(Section):
    """A run, as its user describes it."""

    version: Annotated[int, Field(ge=1, le=1)] = Field(description="Version of this format; 1 is the only one so far.")
    name: Name = Field(description="Name of the run; its folder is runs/<name>-<utc>-<4hex>.")
    seed: NonNegativeInt = Field(1234, description="Seed of weights, data order and dropout.")
    model: Model = Field(description="The LLaMA: preset, Hugging Face folder or inline numbers.")
    tokenizer: Tokenizer | None = Field(None, description="Tokenizer of the data; exported with the model.")
    data: Data = Field(description="Token files, or the tasks' examples, and how they become samples.")
    train: Train = Field(description="Length of the training and the rules for non-finite losses.")
    batch: Batch = Field(description="Batch sizes: any two of global, micro, accumulation.")
    parallel: Parallel = Field(Parallel(), description="Data, tensor and pipeline parallel degrees.")
    engine: Engine = Field(description="megatron, deepspeed or ddp.")
    optimizer: Optimizer = Field(AdamW(), description="The optimizer.")
    schedule: Schedule = Field(ConstantSchedule(kind="constant"), description="Learning rate over the steps.")
    precision: Precision = Field(Precision(), description="Number formats.")
    recompute: Recompute = Field(NoRecompute(kind="none"), description="Activations computed twice to save memory.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="Saving and keeping of state.")
    validation: Validation | None = Field(None, description="Validation loss during training.")
    restart: Restart = Field(Restart(), description="Restarts from the newest checkpoint when a rank fails.")
    cluster: Cluster = Field(Cluster(), description="The machines.")
    # The section of a plugin's launcher is no member of the union; it is written out as what it is.
    launcher: SerializeAsAny[Launcher] = Field(LocalLauncher(kind="local"), description="How processes are started.")
    tracking: Tracking = Field(Tracking(), description="Where metrics go.")
    adapters: tuple[Adapter, ...] = Field((), description="Adapters on the shared base.")
    tasks: tuple[Task, ...] = Field((), description="Tasks with their heads and data.")
    mixture: Mixture | None = Field(None, description="How the adapters' distributions are mixed.")
