"""Plain torch DistributedDataParallel over the single-stage model: the reference for the other engines.

It needs neither Megatron-Core's optimizers and schedules nor DeepSpeed: only the layers are shared with them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llama_scale.train.adamw import fill_state, make_adamw, parameter_groups
from llama_scale.train.engine import (
    LocalPiece,
    LossSum,
    MicroBatches,
    StepResult,
    TensorReader,
    count_tokens,
    to_device,
)
from llama_scale.train.model import build_chunks
from llama_scale.train.names import LocalParameter, logical_parameters
from llama_scale.train.optimizer import HeldParameter, clip
from llama_scale.train.pieces import expected_parameters, fill_from, main_pieces, weight_pieces

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec


class DdpEngine:
    """Implements ``train.engine.Engine``.

    Args:
        spec: The run; ``spec.engine.kind`` is ``ddp``.
        plan: Its plan; tensor and pipeline degrees are 1.
    """

    def __init__(self, spec: RunSpec, plan: RunPlan) -> None:
        self.spec = spec
        self.plan = plan
        self.step = 0
        self.coordinates = plan.topology.coordinates(dist.get_rank())
        self.chunks: list[nn.Module] = list(build_chunks(spec, plan, self.coordinates))
        self._parameters = [p for p in self.chunks[0].parameters() if p.requires_grad]
        self.device = self._parameters[0].device
        self._mains = [_main(p) for p in self._parameters]
        self._optimizer = make_adamw(parameter_groups(self._mains, spec.optimizer), spec.optimizer)
        fill_state(self._optimizer)
        self._model = DistributedDataParallel(
            self.chunks[0],
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            bucket_cap_mb=spec.engine.bucket_mb,
            gradient_as_bucket_view=True,
        )
        halves = any(parameter.dtype == torch.bfloat16 for parameter in self._parameters)
        self._widens = halves and spec.precision.gradients == "fp32"
        if self._widens:
            # The sum over micro-batches is kept in main_grad; the last micro-batch joins it in the hook.
            # A lambda, because DDP compares a hook's annotations with types and ours are strings.
            self._model.register_comm_hook(None, lambda _state, bucket: _reduce_in_fp32(bucket))

    def train_step(self, batch: MicroBatches, lr: float) -> StepResult:
        """See ``Engine.train_step``."""
        self._zero_grad()
        tokens = count_tokens(batch, device=self.device)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        last = len(batch) - 1
        for index, micro in enumerate(batch):
            with contextlib.nullcontext() if index == last else self._model.no_sync():
                loss_sum = self._model(to_device(micro, self.device))
                # DDP takes the mean over replicas; the loss is the mean over all their tokens.
                (loss_sum * (self.plan.topology.dp_size / max(1, tokens))).backward()
                if self._widens and index < last:
                    _accumulate(self._parameters)
            total += loss_sum.detach().double()
        loss = self._summed(total) / max(1, tokens)
        grads = self._take_gradients()
        norm = math.sqrt(float(torch.stack(torch._foreach_norm(grads)).double().square().sum()))
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self._update(grads, norm=norm, lr=lr)
        return StepResult(loss=loss, grad_norm=norm, tokens=tokens, skipped=not finite)

    @torch.no_grad()
    def evaluate(self, batch: MicroBatches) -> LossSum:
        """See ``Engine.evaluate``."""
        chunk = self.chunks[0].eval()
        try:
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for micro in batch:
                total += chunk(to_device(micro, self.device)).double()
        finally:
            chunk.train()
        return LossSum(total=self._summed(total), tokens=count_tokens(batch, device=self.device))

    def model_pieces(self, *, frozen: bool = False) -> Iterator[LocalPiece]:
        """See ``Engine.model_pieces``."""
        return weight_pieces(self._local_parameters(), self.plan, self.coordinates, frozen=frozen)

    def optimizer_pieces(self) -> Iterator[LocalPiece]:
        """See ``Engine.optimizer_pieces``."""
        return main_pieces(self._local_parameters(), self._held(), self.plan, self.coordinates)

    def load(self, reader: TensorReader, *, optimizer: bool, step: int = 0) -> None:
        """See ``Engine.load``."""
        wanted = expected_parameters(self._local_parameters(), reader, self.plan, optimizer=optimizer)
        fill_from(reader, wanted, self._held(), optimizer=optimizer, step=step)
        self.step = step if optimizer else 0

    def close(self) -> None:
        """See ``Engine.close``."""
        self._optimizer = self._model = None
        self._parameters, self._mains, self.chunks = [], [], []

    def _local_parameters(self) -> Iterator[LocalParameter]:
        return logical_parameters(self.chunks, self.plan, self.coordinates)

    def _held(self) -> Iterator[HeldParameter]:
        for parameter, main in zip(self._parameters, self._mains, strict=True):
            yield HeldParameter(parameter=parameter, main=main, start=None, state=self._optimizer.state[main])

    def _summed(self, total: torch.Tensor) -> float:
        dist.all_reduce(total)
        return float(total)

    def _zero_grad(self) -> None:
        for parameter in self._parameters:
            # In place: with gradient_as_bucket_view the gradients live in DDP's buckets.
            if parameter.grad is not None:
                parameter.grad.zero_()
            if self._widens and hasattr(parameter, "main_grad"):
                parameter.main_grad.zero_()

    def _take_gradients(self) -> list[torch.Tensor]:
        """Hand the reduced gradients to the tensors that AdamW updates, in fp32."""
        for parameter, main in zip(self._parameters, self._mains, strict=True):
            main.grad = parameter.main_grad if self._widens else parameter.grad.to(main.dtype)
        return [main.grad for main in self._mains]

    @torch.no_grad()
    def _update(self, grads: list[torch.Tensor], *, norm: float, lr: float) -> None:
        clip(grads, norm=norm, limit=self.spec.optimizer.clip_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.step += 1
        for parameter, main in zip(self._parameters, self._mains, strict=True):
            if main is not parameter:
                parameter.copy_(main)


def _main(parameter: nn.Parameter) -> torch.Tensor:
    """Return what AdamW updates: the parameter itself, or an fp32 copy."""
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float()


def _accumulate(parameters: list[nn.Parameter]) -> None:
    """Add the gradients of a micro-batch to the fp32 sums and clear them."""
    for parameter in parameters:
        if not hasattr(parameter, "main_grad"):
            parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        parameter.main_grad.add_(parameter.grad)
        parameter.grad.zero_()


def _reduce_in_fp32(bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket's gradients over the replicas in fp32, with the sums of earlier micro-batches added.

    The results are views of one buffer, left in each parameter's ``main_grad``; the bf16 bucket itself stays local.
    """
    parameters, gradients = bucket.parameters(), bucket.gradients()
    flat = torch.cat([g.reshape(-1).float() for g in gradients])
    offset = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        view = flat[offset : offset + gradient.numel()].view_as(parameter)
        offset += gradient.numel()
        if hasattr(parameter, "main_grad"):
            view.add_(parameter.main_grad)
        parameter.main_grad = view
    world = dist.get_world_size()
    work = dist.all_reduce(flat.div_(world), async_op=True)
    buffer = bucket.buffer()
    return work.get_future().then(lambda _: buffer)
