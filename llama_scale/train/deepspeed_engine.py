"""The DeepSpeed engine: ZeRO 0 to 3 with tensor parallelism, or its pipeline engine with ZeRO 1, on the same layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from llama_scale.engines.deepspeed import deepspeed_config, zero_stage
from llama_scale.train import deepspeed_state as state
from llama_scale.train.adamw import make_adamw, parameter_groups
from llama_scale.train.deepspeed_import import deepspeed, initialize, join, quiet
from llama_scale.train.deepspeed_pipeline import StagePipeline
from llama_scale.train.engine import (
    LocalPiece,
    LossSum,
    MicroBatches,
    StepResult,
    TensorReader,
    count_tokens,
    to_device,
)
from llama_scale.train.model import build_chunks, named_layers
from llama_scale.train.names import LocalParameter, logical_parameters
from llama_scale.train.optimizer import HeldParameter, clip, gradients
from llama_scale.train.pieces import expected_parameters, fill_from, main_pieces, weight_pieces
from llama_scale.train.versions import parallel_state

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec


class _ParallelState:
    """Megatron-Core's process groups with the three names that DeepSpeed's mpu has beside them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    @staticmethod
    def get_model_parallel_world_size() -> int:
        """Return the processes that share one replica of the model."""
        return dist.get_world_size(parallel_state.get_model_parallel_group())

    @staticmethod
    def get_model_parallel_rank() -> int:
        """Return this rank's number among them."""
        return dist.get_rank(parallel_state.get_model_parallel_group())

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        """Return the global ranks of this rank's replicas."""
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())


class DeepSpeedEngine:
    """Implements ``train.engine.Engine``.

    Args:
        spec: The run; ``spec.engine.kind`` is ``deepspeed``.
        plan: Its plan.
    """

    def __init__(self, spec: RunSpec, plan: RunPlan) -> None:
        self.spec = spec
        self.plan = plan
        self.step = 0
        self.stage = zero_stage(spec)
        self.coordinates = plan.topology.coordinates(dist.get_rank())
        self.chunks: list[nn.Module] = list(build_chunks(spec, plan, self.coordinates))
        self._parameters = [p for p in self.chunks[0].parameters() if p.requires_grad]
        self.device = self._parameters[0].device
        join()
        self._pipeline: StagePipeline | None = None
        module: nn.Module = self.chunks[0]
        updated = self._parameters
        if plan.topology.pp_size > 1:
            module = self._pipeline = StagePipeline(self.chunks[0], plan, self.coordinates)
            updated = [*updated, *self._pipeline.stage.fillers]
        self._engine = initialize(
            model=module,
            optimizer=make_adamw(parameter_groups(updated, spec.optimizer), spec.optimizer, fused=True),
            config=deepspeed_config(spec, plan),
            mpu=None if self._pipeline else _ParallelState(),
        )
        if self.stage == 3:
            _gather_with_owner(self.chunks[0])
        state.prepare(self._engine.optimizer, stage=self.stage)

    def train_step(self, batch: MicroBatches, lr: float) -> StepResult:
        """See ``Engine.train_step``."""
        tokens = self._global_tokens(batch)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        on_device = [to_device(micro, self.device) for micro in batch]
        # DeepSpeed takes the mean over micro-batches and replicas; the loss is the mean over all their tokens.
        scale = len(batch) * self.plan.topology.dp_size / max(1, tokens)
        with quiet():
            if self._pipeline is not None:
                loss = self._pipeline.train_batch(self._engine, on_device, scale=scale)
                norm, finite = self._outcome()
            else:
                loss = self._forward_backward(on_device, scale=scale)
                norm, finite = self._update()
        self.step += finite
        return StepResult(loss=loss, grad_norm=norm, tokens=tokens, skipped=not finite)

    @torch.no_grad()
    def evaluate(self, batch: MicroBatches) -> LossSum:
        """See ``Engine.evaluate``."""
        tokens = self._global_tokens(batch)
        on_device = [to_device(micro, self.device) for micro in batch]
        if self._pipeline is not None:
            # DeepSpeed takes the mean over micro-batches and replicas.
            scale = float(len(batch) * self.plan.topology.dp_size)
            with quiet():
                return LossSum(total=self._pipeline.eval_batch(self._engine, on_device, scale=scale), tokens=tokens)
        self._engine.eval()
        try:
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for micro in on_device:
                total += self._engine(micro).double()
        finally:
            self._engine.train()
        return LossSum(total=self._summed(total), tokens=tokens)

    def model_pieces(self, *, frozen: bool = False) -> Iterator[LocalPiece]:
        """See ``Engine.model_pieces``."""
        if self.stage == 3:
            return state.divided_weight_pieces(self._local_parameters(), self.plan, self.coordinates, frozen=frozen)
        return weight_pieces(self._local_parameters(), self.plan, self.coordinates, frozen=frozen)

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        """See ``Engine.optimizer_pieces``."""
        return main_pieces(self._local_parameters(), self._held(), self.plan, self.coordinates)

    def load(self, reader: TensorReader, *, optimizer: bool, step: int = 0) -> None:
        """See ``Engine.load``."""
        fill = state.fill_divided if self.stage == 3 else fill_from
        wanted = expected_parameters(self._local_parameters(), reader, self.plan, optimizer=optimizer)
        fill(reader, wanted, self._held(), optimizer=optimizer, step=step)
        state.refresh(self._held(), stage=self.stage)
        if self.stage == 3:
            state.forget_whole_weights(self._engine.optimizer)
        self.step = step if optimizer else 0

    def close(self) -> None:
        """See ``Engine.close``."""
        self._engine.destroy()
        self._engine = self._pipeline = None
        self._parameters, self.chunks = [], []

    def _local_parameters(self) -> Iterator[LocalParameter]:
        return logical_parameters(self.chunks, self.plan, self.coordinates)

    def _held(self) -> Iterator[HeldParameter]:
        return state.held_parameters(self._engine.optimizer, self._parameters, stage=self.stage)

    def _forward_backward(self, batch: MicroBatches, *, scale: float) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        last = len(batch) - 1
        for index, micro in enumerate(batch):
            self._engine.set_gradient_accumulation_boundary(index == last)
            loss_sum = self._engine(micro)
            self._engine.backward(loss_sum * scale)
            total += loss_sum.detach().double()
        return self._summed(total) * scale / (len(batch) * self.plan.topology.dp_size)

    def _update(self) -> tuple[float, bool]:
        """Do AdamW's step; returns the gradient norm and whether it was finite (otherwise nothing is updated)."""
        if self.stage:
            self._engine.step()
            return self._outcome()
        norm = self._undivided_norm()
        finite = math.isfinite(norm)
        if finite:
            clip(gradients(self._engine.optimizer), norm=norm, limit=self.spec.optimizer.clip_grad_norm)
        else:
            # AdamW passes over tensors without gradient.
            for parameter in self._parameters:
                parameter.grad = None
        self._engine.step()
        return norm, finite

    def _outcome(self) -> tuple[float, bool]:
        if self._engine.optimizer.overflow:
            return math.nan, False
        return float(self._engine.get_global_grad_norm()), True

    def _undivided_norm(self) -> float:
        """Return the norm over the tensor group; parameters that are not cut are equal on its ranks and count once."""
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for parameter in self._parameters:
            if getattr(parameter, "tensor_model_parallel", False) or self.coordinates.tp_rank == 0:
                squares += parameter.grad.double().square().sum()
        dist.all_reduce(squares, group=parallel_state.get_tensor_model_parallel_group())
        return math.sqrt(float(squares)) if torch.isfinite(squares) else math.nan

    def _global_tokens(self, batch: MicroBatches) -> int:
        return count_tokens(batch, device=self.device, group=parallel_state.get_data_parallel_group())

    def _summed(self, total: torch.Tensor) -> float:
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return float(total)


def _gather_with_owner(chunk: Any) -> None:
    """Let ZeRO 3 gather with a module what the module uses without calling the one that holds it.

    The loss multiplies by the output layer's matrix itself. Adapters and task heads are not called as modules, and
    adapters may read the base's matrices beside their own parameters.
    """
    ends = [chunk._modules[name] for name in ("heads", "mixture") if name in chunk._modules]
    for parameter in (_head(chunk), *(p for end in ends for p in end.parameters())):
        deepspeed.zero.register_external_parameter(chunk, parameter)
    for _, layer in named_layers([chunk]):
        if layer.hooks is not None:
            for parameter in layer.parameters():
                deepspeed.zero.register_external_parameter(layer, parameter)


def _head(chunk: Any) -> nn.Parameter:
    """Return the output layer's own parameter, without the hooks that would gather it."""
    if chunk.share_embeddings_and_output_weights:
        return chunk.shared_embedding_or_output_weight()
    return chunk.output_layer.weight
