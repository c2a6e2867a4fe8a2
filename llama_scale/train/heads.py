"""The losses of a run's tasks on the last stage: the output layer's for language modelling, or a head of their own.

Shape letters: S sequence (this rank's part of it with sequence parallelism), B rows of the micro-batch, R rows of one
task, H hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from llama_scale.extensions.task import TaskRows
from llama_scale.layout.parameters import head_parameter
from llama_scale.train.adapting import bound, linked
from llama_scale.train.statistics import TASK
from llama_scale.train.versions import parallel_state, tensor_parallel

if TYPE_CHECKING:
    from llama_scale.train.engine import MicroBatch, Route
    from llama_scale.train.model import LlamaModel
    from llama_scale.train.run_tasks import RunTask


class TaskHeads:
    """Compute a micro-batch's loss from its routes.

    Args:
        tasks: The run's tasks.
        model: The chunk with the head; it holds the tasks' parameters.
    """

    def __init__(self, tasks: Sequence[RunTask], model: LlamaModel) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._model = model
        # Rows of a group that goes on in the next micro-batch, by task; see ``Route.continues``.
        self._waiting: dict[str, list[tuple[torch.Tensor, TaskRows]]] = {}
        # By name, not by value: ZeRO 3 and others replace what a parameter holds.
        named = [name for name, _ in model.named_parameters()]
        self._names = {
            task.name: {
                name.removeprefix(prefix): name
                for prefix in [head_parameter(task.name, "")]
                for name in named
                if name.startswith(prefix)
            }
            for task in tasks
        }

    def loss(self, hidden: torch.Tensor, batch: MicroBatch, routes: Sequence[Route]) -> torch.Tensor:
        """Return the summed loss of rows that each go through one adapter or none.

        In training, each task's part is added to the model's statistics.

        Every trainable parameter of the heads and of the output layer gets a gradient, zeros without rows of its tasks.

        Args:
            hidden: Final hidden states ``[S, B, H]``.
            batch: The micro-batch.
            routes: Whose rows they are; start and stop count in ``hidden`` and in ``batch`` alike.
        """
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden, heads = self._bound(hidden)
        spoke = False
        before: Counter[str | None] = Counter()  # rows of each task in the routes so far
        for route in routes:
            if route.padding:
                continue
            rows = hidden[:, route.start : route.stop]
            weights = batch["loss_mask"][route.start : route.stop]
            if route.task is not None and self._tasks[route.task].head == "own":
                part = self._own_loss(rows, batch, route, heads[route.task], before=before[route.task])
            else:
                part = self._model.language_loss(rows, batch["labels"][route.start : route.stop], weights)
                spoke = True
            if route.task is not None and self._model.training:
                self._model.statistics.add(TASK + route.task, part, weights.sum())
            total = total + part
            before[route.task] += route.stop - route.start
        unspoken = self._model.head_weight()
        return total if spoke or not unspoken.requires_grad else linked(total, unspoken)

    def _bound(self, hidden: torch.Tensor) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """Return stand-ins for the heads' parameters by task and name, see ``adapting.bound``."""
        heads = {task: dict[str, torch.Tensor](self._parameters(task)) for task in self._tasks}
        places = [(task, name) for task, named in heads.items() for name, p in named.items() if p.requires_grad]
        if places and torch.is_grad_enabled():
            hidden, *stand_ins = bound(hidden, *(heads[task][name] for task, name in places))
            for (task, name), stand_in in zip(places, stand_ins, strict=True):
                heads[task][name] = stand_in
        return hidden, heads

    def _own_loss(
        self,
        hidden: torch.Tensor,
        batch: MicroBatch,
        route: Route,
        head: Mapping[str, torch.Tensor],
        *,
        before: int,
    ) -> torch.Tensor:
        """Return the loss of a route's rows, and of those that waited for them.

        Args:
            hidden: Final hidden states ``[S, R, H]`` of the route's rows.
            batch: The micro-batch.
            route: The route.
            head: The head's parameters.
            before: Rows of the same task in the micro-batch's earlier routes.
        """
        assert route.task is not None
        rows = slice(route.start, route.stop)
        extra = batch.get("extra", {}).get(route.task, {})
        part = slice(before, before + route.stop - route.start)
        found = TaskRows(
            tokens=batch["tokens"][rows],
            weights=batch["loss_mask"][rows],
            documents=batch["documents"][rows],
            extra={name: values[part].to(hidden.device) for name, values in extra.items()},
        )
        waiting = self._waiting.pop(route.task, [])
        waiting.append((self._whole_sequence(hidden), found))
        if route.continues:
            self._waiting[route.task] = waiting
            return hidden.new_zeros((), dtype=torch.float32)
        whole, found = waiting[0] if len(waiting) == 1 else _joined(waiting)
        return self._tasks[route.task].task.loss(whole, found, _Context(head, route.pool)).float()

    def _whole_sequence(self, hidden: torch.Tensor) -> torch.Tensor:
        """Gather the sequence; each tensor parallel rank computes the same loss, so gradients are not summed."""
        if not self._model.config.sequence_parallel or self._model.rows.group is None:
            return hidden
        return tensor_parallel.gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=False, group=self._model.rows.group
        )

    def _parameters(self, task: str) -> dict[str, nn.Parameter]:
        return {short: self._model.get_parameter(name) for short, name in self._names[task].items()}


def _joined(parts: Sequence[tuple[torch.Tensor, TaskRows]]) -> tuple[torch.Tensor, TaskRows]:
    """Put the rows of a group together, which several micro-batches held."""
    hidden, rows = zip(*parts, strict=True)
    return torch.cat(hidden, dim=1), TaskRows(
        tokens=torch.cat([part.tokens for part in rows]),
        weights=torch.cat([part.weights for part in rows]),
        documents=torch.cat([part.documents for part in rows]),
        extra={name: torch.cat([part.extra[name] for part in rows]) for name in rows[0].extra},
    )


class _Context:
    """Implements ``extensions.task.HeadContext`` over the data parallel group."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], pool: tuple[int, ...]) -> None:
        self.parameters = parameters
        self._pool = pool
        self._rank = parallel_state.get_data_parallel_rank() if len(pool) > 1 else 0

    @property
    def own_offset(self) -> int:
        return sum(self._pool[: self._rank])

    def gather_replicas(self, x: torch.Tensor) -> torch.Tensor:
        if len(self._pool) <= 1:
            return x
        return _Gather.apply(x, self._pool, self._rank)


class _Gather(torch.autograd.Function):
    """Join the replicas' rows, as many as ``pool`` says; backward sums what all replicas want of this one's rows."""

    @staticmethod
    def forward(ctx, x, pool, rank):
        ctx.pool, ctx.rank = pool, rank
        # Equal sizes: not every backend gathers unequal ones.
        padded = x.new_zeros(max(pool), *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in pool]
        dist.all_gather(parts, padded, group=parallel_state.get_data_parallel_group())
        if not x.is_floating_point():
            ctx.set_materialize_grads(False)
        return torch.cat([part[:count] for part, count in zip(parts, pool, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        start = sum(ctx.pool[: ctx.rank])
        return total[start : start + ctx.pool[ctx.rank]], None, None
