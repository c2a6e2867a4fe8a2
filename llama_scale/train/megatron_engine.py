"""The Megatron-Core engine: tensor, pipeline (1F1B and interleaved) and data parallel training of the model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from llama_scale.train import cpu
from llama_scale.train.engine import LocalPiece, LossSum, MicroBatch, MicroBatches, StepResult, TensorReader, to_device
from llama_scale.train.model import build_chunks
from llama_scale.train.names import logical_parameters
from llama_scale.train.optimizer import build_optimizer, clip, gradients, held_parameters, squared_norm
from llama_scale.train.pieces import expected_parameters, fill_from, main_pieces, weight_pieces
from llama_scale.train.versions import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
    get_forward_backward_func,
)

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec


BUCKET_ELEMENTS: int | None = None
"""Gradients per bucket with ``overlap_grad_reduce``; None: Megatron-Core's own, 40 million or 1 million a replica."""


class MegatronEngine:
    """Implements ``train.engine.Engine``.

    Args:
        spec: The run; ``spec.engine.kind`` is ``megatron``.
        plan: Its plan.
    """

    def __init__(self, spec: RunSpec, plan: RunPlan) -> None:
        self.spec = spec
        self.plan = plan
        self.step = 0
        self.coordinates = plan.topology.coordinates(dist.get_rank())
        self.chunks: list[nn.Module] = list(build_chunks(spec, plan, self.coordinates))
        self.device = next(self.chunks[0].parameters()).device
        self._wrapped = _wrap(spec, self.chunks)
        _connect(self.chunks, self._wrapped, overlap=spec.engine.overlap_grad_reduce)
        if spec.engine.overlap_param_gather:
            _gather_with_owner(self.chunks)
        self._optimizer = build_optimizer(
            spec.optimizer,
            self._wrapped,
            bf16=spec.precision.compute == "bf16",
            distributed=spec.engine.distributed_optimizer,
        )
        self._run = get_forward_backward_func()

    def train_step(self, batch: MicroBatches, lr: float) -> StepResult:
        """See ``Engine.train_step``."""
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        parts = self._forward_backward(batch, forward_only=False)
        self._optimizer.prepare_grads()
        summed, norm = self._totals(parts, squared_norm(self._optimizer))
        loss = summed.mean
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            clip(gradients(self._optimizer), norm=norm, limit=self.spec.optimizer.clip_grad_norm)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step_with_ready_grads()
            self.step += 1
        return StepResult(loss=loss, grad_norm=norm, tokens=summed.tokens, skipped=not finite)

    @torch.no_grad()
    def evaluate(self, batch: MicroBatches) -> LossSum:
        """See ``Engine.evaluate``."""
        for chunk in self._wrapped:
            chunk.eval()
        try:
            parts = self._forward_backward(batch, forward_only=True)
        finally:
            for chunk in self._wrapped:
                chunk.train()
        return self._totals(parts, torch.zeros((), dtype=torch.float64))[0]

    def model_pieces(self, *, frozen: bool = False) -> Iterator[LocalPiece]:
        """See ``Engine.model_pieces``."""
        self._gather_parameters()
        return weight_pieces(self._local_parameters(), self.plan, self.coordinates, frozen=frozen)

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        """See ``Engine.optimizer_pieces``."""
        return main_pieces(self._local_parameters(), held_parameters(self._optimizer), self.plan, self.coordinates)

    def load(self, reader: TensorReader, *, optimizer: bool, step: int = 0) -> None:
        """See ``Engine.load``."""
        wanted = expected_parameters(self._local_parameters(), reader, self.plan, optimizer=optimizer)
        fill_from(reader, wanted, held_parameters(self._optimizer), optimizer=optimizer, step=step)
        self.step = step if optimizer else 0
        self._gather_parameters()

    def close(self) -> None:
        """See ``Engine.close``."""
        self._optimizer = None
        self._wrapped = []
        self.chunks = []

    def _local_parameters(self) -> Iterator[Any]:
        return logical_parameters(self.chunks, self.plan, self.coordinates)

    def _gather_parameters(self) -> None:
        """Make weights current on all ranks where the distributed optimizer gathers them only in the next forward."""
        if self.spec.engine.overlap_param_gather:
            for chunk in self._wrapped:
                chunk.start_param_sync(force_sync=True)

    def _forward_backward(self, batch: MicroBatches, *, forward_only: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run the pipeline's schedule; returns (loss sum, tokens) of each micro-batch on the last stage's ranks."""
        on_device = [to_device(micro, self.device) for micro in batch]
        return self._run(
            forward_step_func=_forward_step,
            data_iterator=[iter(on_device) for _ in self._wrapped],
            model=self._wrapped,
            num_microbatches=len(on_device),
            seq_length=on_device[0]["tokens"].shape[1],
            micro_batch_size=on_device[0]["tokens"].shape[0],
            forward_only=forward_only,
        )

    def _totals(
        self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], squares: torch.Tensor
    ) -> tuple[LossSum, float]:
        """Add up over all ranks, in one exchange: loss and unmasked tokens; gradient norm."""
        topology = self.plan.topology
        values = torch.zeros(3, dtype=torch.float64, device=self.device)
        if parts:
            losses, tokens = zip(*parts, strict=True)
            values[0] = torch.stack(losses).double().sum() / topology.tp_size
            values[1] = torch.stack(tokens).double().sum() / topology.tp_size
        # Without the distributed optimizer all replicas hold the whole gradient of their part of the model.
        values[2] = squares if self.spec.engine.distributed_optimizer else squares / topology.dp_size
        dist.all_reduce(values)
        loss_sum, tokens, total_squares = values.tolist()
        norm = math.sqrt(total_squares) if total_squares >= 0 else math.nan
        return LossSum(total=loss_sum, tokens=round(tokens)), norm


def _wrap(spec: RunSpec, chunks: Sequence[nn.Module]) -> list[Any]:
    engine = spec.engine
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=spec.precision.gradients == "fp32",
        overlap_grad_reduce=engine.overlap_grad_reduce,
        overlap_param_gather=engine.overlap_param_gather,
        use_distributed_optimizer=engine.distributed_optimizer,
        bucket_size=BUCKET_ELEMENTS,
    )
    with cpu.construction():
        return [
            # Only the first chunk's gradients are reduced while the backward pass of later ones goes on.
            DistributedDataParallel(chunk.config, config, chunk, disable_bucketing=index > 0)
            for index, chunk in enumerate(chunks)
        ]


def _gather_with_owner(chunks: Sequence[nn.Module]) -> None:
    """Let what is not called as a module, adapters and heads, wait for its weights when its owner is called.

    Megatron-Core gathers a module's weights before the module's own forward.
    """
    for chunk in chunks:
        ends = [chunk._modules[name] for name in ("heads", "mixture") if name in chunk._modules]
        chunk.register_forward_pre_hook(functools.partial(_call_hooks, [m for end in ends for m in end.modules()]))
        for layer in chunk.decoder.layers:
            if layer.hooks is not None:
                layer.register_forward_pre_hook(functools.partial(_call_hooks, tuple(layer.adapters.modules())))


def _call_hooks(modules: Sequence[nn.Module], *_: Any) -> None:
    for module in modules:
        for hook in module._forward_pre_hooks.values():
            hook(module, ())


def _connect(chunks: Sequence[nn.Module], wrapped: Sequence[Any], *, overlap: bool) -> None:
    """Give the schedule its callbacks; they live in the one config that all chunks share."""
    config = chunks[0].config
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        config.no_sync_func = [chunk.no_sync for chunk in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync


def _forward_step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[torch.Tensor, Any]:
    batch = next(batches)

    def loss_of(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        tokens = batch["loss_mask"].sum().to(torch.int)
        return output, tokens, (output.detach(), tokens)

    return model(batch), loss_of
