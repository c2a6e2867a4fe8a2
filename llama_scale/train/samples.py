"""Where a run's samples come from: token files, or the examples of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch.distributed as dist

from llama_scale.data.task_tokenizer import starts_texts
from llama_scale.runs.folder import RunFolder
from llama_scale.train.data import Samples, SplitName
from llama_scale.train.run_tasks import make_tasks
from llama_scale.train.task_data import TaskSamples
from llama_scale.train.task_data_prepare import prepared_splits

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import BatchPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.engine import MicroBatch


class SampleSource(Protocol):
    """Samples by number, the same for every layout."""

    def global_batch(self, first: int, *, batch: BatchPlan, dp_rank: int, dp_size: int) -> list[MicroBatch]:
        """Return one replica's part of the global batch that begins with sample ``first``."""
        ...

    def __len__(self) -> int:
        """Return the number of different rows."""
        ...

    def evaluation(self, limit: int, *, batch: BatchPlan, dp_rank: int, dp_size: int) -> Iterator[list[MicroBatch]]:
        """Yield one replica's part of each global batch of an evaluation.

        Together the replicas read the first ``limit`` rows, each once; fewer, if there are no more. Which rows these
        are depends neither on the replicas nor on the sizes of batches. The last batch is filled up with rows that
        count nothing, for all ranks take part in each batch.
        """
        ...


def make_samples(spec: RunSpec, *, split: SplitName, run_dir: Path) -> SampleSource:
    """Open the samples of one split of a run; collective, for rank 0 makes tasks' examples into features first.

    Raises:
        DataError: A file is missing or damaged, an example cannot be used, or the split is empty.
    """
    if spec.data.kind == "tasks":
        return make_task_samples(spec, split=split, run_dir=run_dir)
    return Samples(spec.data, split=split, seed=spec.seed, vocab_size=spec.model.vocab_size)


def make_task_samples(spec: RunSpec, *, split: SplitName, run_dir: Path) -> TaskSamples:
    """Open the rows of a run's tasks; see :func:`make_samples`."""
    folder = RunFolder(run_dir).examples
    tasks = [task for task in make_tasks(spec, starts_texts=starts_texts(folder)) if task.weight > 0]
    prepared = prepared_splits(spec, tasks, split, folder=folder, prepares=dist.get_rank() == 0)
    return TaskSamples(tasks, prepared, split=split, seed=spec.seed, seq_length=spec.data.seq_length)
