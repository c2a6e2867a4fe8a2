"""The seam between the training loop and the systems that train: what every engine offers.

The loop, checkpoints and tests know engines only through this protocol, so that Megatron-Core, DeepSpeed and plain
DDP are interchangeable.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NotRequired, Protocol, TypedDict

import torch
import torch.distributed as dist
from torch import nn

from llama_scale.layout.boxes import Box

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec

Group = Literal["model", "master", "exp_avg", "exp_avg_sq"]
"""Kinds of tensors in a checkpoint: weights, their fp32 copies (bf16 runs only) and AdamW's moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Consecutive rows of a micro-batch that go one way through the model.

    Args:
        adapter: Name of the adapter that they go through; None: the bare base.
        task: Name of the task that they are of; None: language modelling on plain tokens.
        start: First row.
        stop: First row after them.
        pool: Rows of that task on each data parallel replica in the same micro-batch slot, in the replicas' order;
            empty: the loss of a head of its own joins no rows of other replicas.
        padding: These rows only fill the micro-batch up: they count nothing, and no head is shown them.
        continues: More rows of the same group follow in the next micro-batch: a head of its own waits for them and is
            shown the group at once. Only evaluation has groups, see ``train.evaluation_rows``.
    """

    adapter: str | None
    task: str | None
    start: int
    stop: int
    pool: tuple[int, ...] = ()
    padding: bool = False
    continues: bool = False


class MicroBatch(TypedDict):
    """One forward pass of one data parallel replica; tensors are ``[micro, seq]``.

    All ranks of a replica (every tp and pp rank) are given the same tensors.

    Keys:
        tokens: int64 token ids.
        labels: int64, the token that follows each position; any valid id where ``loss_mask`` is 0.
        loss_mask: float32 weight of each position in the loss: 1 counts, 0 does not.
        position_ids: int64 position of each token in its document, for RoPE.
        documents: int64, present only with ``data.isolate_documents``: tokens attend only to tokens of equal number.
        routes: Which rows go which way, covering all of them in order; absent: all rows through the run's one adapter,
            if it has one.
        extra: Task -> name -> ``[rows of that task, ...]``: what heads of their own need, on the CPU.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    documents: NotRequired[torch.Tensor]
    routes: NotRequired[tuple[Route, ...]]
    extra: NotRequired[dict[str, dict[str, torch.Tensor]]]


MicroBatches = Sequence[MicroBatch]
"""This replica's part of one global batch: one entry per accumulation step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Report one optimizer step; equal on all ranks.

    Args:
        loss: Mean negative log-likelihood (nats) over the unmasked tokens of the global batch, before the update.
        grad_norm: Global L2 norm of the gradient before clipping.
        tokens: Unmasked tokens of the global batch.
        skipped: The update was left out because loss or gradient norm is not finite; weights are unchanged.
    """

    loss: float
    grad_norm: float
    tokens: int
    skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSum:
    """Report a forward pass over a global batch; equal on all ranks.

    Sums, because the mean over several batches is the sum of their losses over the sum of their tokens.

    Args:
        total: Negative log-likelihood (nats), summed over the unmasked tokens.
        tokens: Unmasked tokens.
    """

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token; 0 without tokens."""
        return self.total / max(1, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPiece:
    """Describe a part of one logical tensor that this rank holds.

    Args:
        group: Kind of tensor.
        name: Name in the table ``layout.parameters.iter_parameters``.
        global_shape: Shape of the whole logical tensor.
        box: The part of it this rank's tensor or flat range belongs to.
        flat_start: First element, in row-major order *inside the box*, of the range held; None: the whole box.
        tensor: Box-shaped when ``flat_start`` is None, else flat. A view of live memory: copy before the next step.
        primary: True on exactly one of the ranks that hold equal copies; that rank writes it.
    """

    group: Group
    name: str
    global_shape: tuple[int, ...]
    box: Box
    flat_start: int | None
    tensor: torch.Tensor
    primary: bool = True


class TensorReader(Protocol):
    """Read boxes of logical tensors out of a checkpoint of any layout (``checkpoint.reader.CheckpointReader``)."""

    def tensors(self, group: str) -> Sequence[str]:
        """Name the tensors of a group."""
        ...

    def read(self, group: str, name: str, box: Box | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return one box (default: the whole tensor), into ``out`` if given, else on the CPU in its stored dtype."""
        ...

    def read_range(self, group: str, name: str, box: Box, *, start: int, numel: int) -> torch.Tensor:
        """Return elements ``start .. start + numel`` of a box, row-major, flat."""
        ...


class Engine(Protocol):
    """A model on this rank with its optimizer; all methods are collective over the run's ranks unless noted."""

    chunks: list[nn.Module]
    """This rank's model chunks, bare (no wrapper): one, or ``virtual_stages`` many."""

    step: int
    """Optimizer updates done so far (AdamW's bias correction counts them); skipped steps do not count."""

    def train_step(self, batch: MicroBatches, lr: float) -> StepResult:
        """Run forward, backward and one AdamW update at this learning rate."""
        ...

    def evaluate(self, batch: MicroBatches) -> LossSum:
        """Return the summed loss of the global batch and its tokens, forward only.

        The replicas' batches have equally many micro-batches, a multiple of the accumulation steps.
        """
        ...

    def model_pieces(self, *, frozen: bool = False) -> Iterator[LocalPiece]:
        """Yield this rank's weights that train (group ``model``), with ``frozen`` the others too.

        Collective where parameters are gathered late.
        """
        ...

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        """Yield this rank's fp32 masters (bf16 only) and moments. Not collective; zeros before the first step."""
        ...

    def load(self, reader: TensorReader, *, optimizer: bool, step: int = 0) -> None:
        """Fill weights (and, with ``optimizer``, masters and moments) from a checkpoint of any layout.

        Args:
            reader: The checkpoint.
            optimizer: Load optimizer state too; without it, it starts anew from the loaded weights.
            step: Optimizer updates behind that state.

        Raises:
            CheckpointError: A tensor is missing or has another shape than the model's.
        """
        ...

    def close(self) -> None:
        """Free process groups and buffers of the engine; it cannot be used afterwards."""
        ...


def to_device(micro: MicroBatch, device: torch.device) -> MicroBatch:
    """Return a micro-batch on a device."""
    return {  # type: ignore[return-value]
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in micro.items()
    }


def count_tokens(batch: MicroBatches, *, device: torch.device, group: dist.ProcessGroup | None = None) -> int:
    """Return the unmasked tokens of the global batch; collective over the replicas, before the first forward pass.

    A mask that is not finite counts as none: the loss then is not finite either, and the update is left out.

    Args:
        batch: This replica's part.
        device: Where the ranks' tensors are.
        group: The data parallel ranks; None: all.
    """
    count = torch.stack([micro["loss_mask"].sum(dtype=torch.float64) for micro in batch]).sum().to(device)
    dist.all_reduce(count, group=group)
    total = float(count)
    return round(total) if math.isfinite(total) else 0


_ENGINES = {
    "megatron": "llama_scale.train.megatron_engine:MegatronEngine",
    "ddp": "llama_scale.train.ddp_engine:DdpEngine",
    "deepspeed": "llama_scale.train.deepspeed_engine:DeepSpeedEngine",
}
"""Engine kind -> class, imported on first use: DeepSpeed and Megatron-Core each cost seconds."""


def module_of(kind: str) -> str:
    """Return the module of an engine, so that an agent can import it before it forks its ranks."""
    return _ENGINES[kind].partition(":")[0]


def make_engine(spec: RunSpec, plan: RunPlan) -> Engine:
    """Build the spec's engine on this rank with freshly initialised weights.

    ``train.distributed.initialize`` has been called.
    """
    module, _, name = _ENGINES[spec.engine.kind].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(spec, plan)
    if spec.mixture is not None and spec.mixture.objective == "em":
        wrapper: Callable[[Engine], Engine] = importlib.import_module("llama_scale.train.em").GeneralisedEm
        return wrapper(engine)
    return engine
