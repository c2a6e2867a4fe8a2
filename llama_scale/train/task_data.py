"""The rows of a run with tasks: which task sample k is of, and its row, are pure functions of (seed, weights, k).

As with token files, degrees change who reads a sample, never which samples a step reads. The rows of one global batch
are sorted by task before they are dealt to replicas and micro-batches, so that a micro-batch mixes few tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from llama_scale.errors import DataError
from llama_scale.train.blend import Blend
from llama_scale.train.data import permutation, replica_samples
from llama_scale.train.engine import MicroBatch, Route
from llama_scale.train.evaluation_rows import GROUP, Piece, deal
from llama_scale.train.task_data_store import PreparedSplit

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import BatchPlan
    from llama_scale.train.run_tasks import RunTask

_SPLIT_NUMBERS = {"train": 0, "validation": 1, "test": 2}


class TaskSamples:
    """Offer the rows of one split of all tasks, as ``data.Samples`` does for token files.

    Args:
        tasks: The run's tasks of a weight above 0.
        prepared: Their features, in the same order.
        split: Name of the split.
        seed: The run's seed.
        seq_length: Tokens of a row.

    Raises:
        DataError: No task has a weight above 0.
    """

    def __init__(
        self, tasks: Sequence[RunTask], prepared: Sequence[PreparedSplit], *, split: str, seed: int, seq_length: int
    ) -> None:
        self.tasks = list(tasks)
        self._prepared = list(prepared)
        self._seq_length = seq_length
        self._seeds = [(seed, task.number, _SPLIT_NUMBERS[split]) for task in tasks]
        if not tasks:
            raise DataError("no task has a weight above 0, so that there is nothing to train on; raise one")
        self._blend = Blend([task.weight for task in tasks])
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def alone(self, number: int) -> TaskSamples:
        """Return the same rows of one task only."""
        other = TaskSamples.__new__(TaskSamples)
        other.tasks, other._prepared = [self.tasks[number]], [self._prepared[number]]
        other._seq_length, other._seeds = self._seq_length, [self._seeds[number]]
        other._blend, other._orders = Blend([1.0]), {}
        return other

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the task's number among ``tasks`` and the row of its split that sample ``sample`` is."""
        number, local = self._blend.locate(sample)
        epoch, place = divmod(local, len(self._prepared[number]))
        return number, int(self._order(number, epoch)[place])

    def global_batch(self, first: int, *, batch: BatchPlan, dp_rank: int, dp_size: int) -> list[MicroBatch]:
        """Return one replica's part of the global batch that begins with sample ``first``."""
        rows = sorted(
            (self.locate(first + k) for k in range(batch.global_batch)),
            key=lambda row: row[0],  # stable: within a task in the order of the samples
        )
        by_replica = [replica_samples(0, batch, replica, dp_size) for replica in range(dp_size)]
        found = []
        for slot in range(batch.accumulation):
            dealt = [[rows[k] for k in places[slot]] for places in by_replica]
            found.append(self._micro_batch(dealt, dp_rank))
        return found

    def _micro_batch(self, dealt: Sequence[Sequence[tuple[int, int]]], dp_rank: int) -> MicroBatch:
        """Build one replica's micro-batch of a slot from the rows of all replicas in it."""
        own = dealt[dp_rank]
        routes = self._routes(dealt, dp_rank)
        extra = {
            route.task: self._extra(own[route.start : route.stop], self._number(route.task))
            for route in routes
            if route.task is not None
        }
        return _stacked([self._arrays(number, row) for number, row in own], routes, extra)

    def __len__(self) -> int:
        """Return the number of different rows of all tasks."""
        return sum(len(prepared) for prepared in self._prepared)

    def evaluation(self, limit: int, *, batch: BatchPlan, dp_rank: int, dp_size: int) -> Iterator[list[MicroBatch]]:
        """Yield one replica's part of each global batch of an evaluation of one task, see ``samples.SampleSource``.

        The rows of the split are chosen in the order of samples and read in their own order. A head of its own is shown
        groups of ``GROUP`` of them.
        """
        [task], size = self.tasks, len(self)
        rows = sorted(self.locate(k)[1] for k in range(min(limit, size)))
        group = GROUP if task.head == "own" else 1
        for slots in deal(len(rows), batch=batch, dp_rank=dp_rank, dp_size=dp_size, group=group):
            yield [self._evaluated(rows, pieces, size=batch.micro_batch) for pieces in slots]

    def _evaluated(self, rows: Sequence[int], pieces: Sequence[Piece], *, size: int) -> MicroBatch:
        """Build a micro-batch of one task's rows, filled up with padding."""
        [task] = self.tasks
        own = [(0, rows[k]) for piece in pieces for k in piece.rows]
        padding = size - len(own)
        if task.head == "lm":  # its rows are not joined: one product over all of them
            pieces = [Piece(rows=range(len(own)), continues=False)] if own else []
        stops = itertools.accumulate((len(piece.rows) for piece in pieces), initial=0)
        routes = [
            Route(adapter=task.adapter, task=task.name, start=start, stop=stop, continues=piece.continues)
            for (start, stop), piece in zip(itertools.pairwise(stops), pieces, strict=True)
        ]
        if padding:
            routes.append(Route(adapter=task.adapter, task=task.name, start=len(own), stop=size, padding=True))
        arrays = [*(self._arrays(*row) for row in own), *[self._padding()] * padding]
        return _stacked(arrays, tuple(routes), {task.name: self._extra(own, 0)})

    def _routes(self, dealt: Sequence[Sequence[tuple[int, int]]], dp_rank: int) -> tuple[Route, ...]:
        """Return the routes of a replica: its rows by task, and where a head of its own has rows elsewhere, none."""
        routes = []
        start = 0
        for number, task in enumerate(self.tasks):
            pool = tuple(sum(found == number for found, _ in rows) for rows in dealt)
            if pool[dp_rank] or (task.head == "own" and any(pool)):
                stop = start + pool[dp_rank]
                routes.append(Route(adapter=task.adapter, task=task.name, start=start, stop=stop, pool=pool))
                start = stop
        return tuple(routes)

    def _arrays(self, number: int, row: int) -> dict[str, np.ndarray]:
        """Return a row's arrays ``[seq_length]``; padding is a document of its own, -1, without weight."""
        found = self._prepared[number].row(row)
        size = len(found.tokens)
        arrays = self._padding()
        tokens = np.zeros(self._seq_length + 1, np.int64)
        weights = np.zeros(self._seq_length + 1, np.float32)
        tokens[:size], weights[:size], arrays["documents"][:size] = found.tokens, found.weights, found.documents
        firsts = np.flatnonzero(np.diff(found.documents, prepend=-1))
        arrays["position_ids"][:size] = np.arange(size) - np.repeat(firsts, np.diff(firsts, append=size))
        own = self.tasks[number].head == "own"
        return arrays | {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            # The output layer predicts the next token; a head of its own has its weights where it put them.
            "loss_mask": weights[:-1] if own else weights[1:],
        }

    def _padding(self) -> dict[str, np.ndarray]:
        """Return the arrays of a row that holds nothing."""
        size = self._seq_length
        return {
            "tokens": np.zeros(size, np.int64),
            "labels": np.zeros(size, np.int64),
            "loss_mask": np.zeros(size, np.float32),
            "position_ids": np.zeros(size, np.int64),
            "documents": np.full(size, -1, np.int64),
        }

    def _extra(self, rows: Sequence[tuple[int, int]], number: int) -> dict[str, torch.Tensor]:
        """Return the extra arrays ``[R, ...]`` of rows; only tasks whose rows hold one feature each have any."""
        prepared = self._prepared[number]
        features = np.array([prepared.row(row).features[0] for _, row in rows], np.int64)
        return {name: torch.from_numpy(np.array(values[features])) for name, values in prepared.extra.items()}

    def _number(self, name: str) -> int:
        return next(number for number, task in enumerate(self.tasks) if task.name == name)

    def _order(self, number: int, epoch: int) -> np.ndarray:
        """Return the order of a task's rows in an epoch."""
        if (number, epoch) not in self._orders:
            for old in [key for key in self._orders if key[0] == number and key[1] < epoch - 1]:
                del self._orders[old]
            bits = np.random.PCG64(np.random.SeedSequence([*self._seeds[number], epoch]))
            self._orders[number, epoch] = permutation(bits, len(self._prepared[number]))
        return self._orders[number, epoch]


def _stacked(
    arrays: Sequence[Mapping[str, np.ndarray]],
    routes: tuple[Route, ...],
    extra: dict[str, dict[str, torch.Tensor]],
) -> MicroBatch:
    """Return the micro-batch of some rows; without any extra array, it has no ``extra``."""
    batch = MicroBatch(
        **{name: torch.from_numpy(np.stack([row[name] for row in arrays])) for name in arrays[0]},  # type: ignore[typeddict-item]
        routes=routes,
    )
    if any(extra.values()):
        batch["extra"] = extra
    return batch
