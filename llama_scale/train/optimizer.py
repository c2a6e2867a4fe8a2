"""AdamW under Megatron-Core's optimizers: built, stepped and taken apart the same way whichever of them is in use.

Megatron-Core wraps torch's AdamW in one of three classes: FP32Optimizer (updates the weights themselves),
Float16OptimizerWithFloat16Params (fp32 copies of bf16 weights) and DistributedOptimizer (each data parallel rank keeps
and updates a flat range of every gradient bucket). ``held_parameters`` tells what of which parameter this rank updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo  # the first optimizer would load it (a second): so the agent does, once for all its ranks
from torch import nn

from llama_scale.train import cpu
from llama_scale.train.versions import OptimizerConfig, get_megatron_optimizer, grads_for_norm, use_torch_adamw

if TYPE_CHECKING:
    from llama_scale.spec.optimizer import AdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldParameter:
    """What this rank updates of one parameter.

    Args:
        parameter: The module's parameter.
        main: What AdamW updates: fp32, flat when it is a range, the parameter itself in plain fp32 training.
        start: First element of ``main`` in the flat parameter; None when it is the whole of it.
        state: AdamW's state: ``exp_avg`` and ``exp_avg_sq`` like ``main``, and the scalar ``step``.
    """

    parameter: nn.Parameter
    main: torch.Tensor
    start: int | None
    state: dict[str, torch.Tensor]

    @property
    def is_copy(self) -> bool:
        """Tell whether ``main`` has memory of its own beside the parameter's."""
        return self.parameter.dtype != torch.float32


def build_optimizer(settings: AdamW, chunks: Sequence[nn.Module], *, bf16: bool, distributed: bool) -> Any:
    """Build the optimizer over wrapped chunks, with moments of zero in place.

    Args:
        settings: The spec's section.
        chunks: Megatron-Core DistributedDataParallel modules.
        bf16: Weights are bf16; fp32 copies are kept.
        distributed: Divide the state over the data parallel group.
    """
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad_norm,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=distributed,
        overlap_param_gather=distributed and chunks[0].ddp_config.overlap_param_gather,
    )
    with cpu.construction(), use_torch_adamw():
        optimizer = get_megatron_optimizer(config, list(chunks), use_gloo_process_groups=False)
    for group in optimizer.param_groups:
        # Megatron-Core leaves 1 to matrices and 0 to vectors (the norms) and expects its scheduler to apply it.
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        group["fused"], group["foreach"] = True, False
        for main in group["params"]:
            inner_state(optimizer, main).update(zero_state(main))
    return optimizer


def zero_state(main: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return AdamW's state of a tensor as it is before the first step."""
    state = {moment: torch.zeros_like(main, requires_grad=False) for moment in MOMENTS}
    state["step"] = torch.zeros((), dtype=torch.float32, device=main.device)
    return state


def inner_state(optimizer: Any, main: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return AdamW's state of one tensor that it updates."""
    (single,) = optimizer.chained_optimizers
    return single.optimizer.state[main]


def held_parameters(optimizer: Any) -> Iterator[HeldParameter]:
    """Yield what this rank updates; with the distributed optimizer, only parameters it has a range of."""
    (single,) = optimizer.chained_optimizers
    for parameter, main, start in _pairs(single):
        yield HeldParameter(parameter=parameter, main=main, start=start, state=single.optimizer.state[main])


def _pairs(single: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor, int | None]]:
    if hasattr(single, "shard_fp32_groups"):
        for models, shards in (
            (single.model_fp32_groups, single.shard_fp32_groups),
            (single.model_float16_groups, single.shard_fp32_from_float16_groups),
        ):
            for parameter, main in _flat_pairs(models, shards):
                yield parameter, main, single._get_model_param_range_map(parameter)["param"].start
    elif hasattr(single, "float16_groups"):
        for parameter, main in _flat_pairs(single.float16_groups, single.fp32_from_float16_groups):
            yield parameter, main, None
        for group in single.fp32_from_fp32_groups:
            for parameter in group:
                yield parameter, parameter, None
    else:
        for parameter in single.get_parameters():
            yield parameter, parameter, None


def _flat_pairs(
    models: Sequence[Sequence[nn.Parameter]], mains: Sequence[Sequence[torch.Tensor]]
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    for model_group, main_group in zip(models, mains, strict=True):
        yield from zip(model_group, main_group, strict=True)


@torch.no_grad()
def squared_norm(optimizer: Any) -> torch.Tensor:
    """Return this rank's share of the gradient's squared L2 norm, fp64; replicas and tied copies count once.

    ``optimizer.prepare_grads`` has been called.
    """
    (single,) = optimizer.chained_optimizers
    grads = grads_for_norm(single)
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(grads)).double().square().sum()


@torch.no_grad()
def clip(grads: Sequence[torch.Tensor], *, norm: float, limit: float) -> None:
    """Scale gradients in place so that their global norm is at most ``limit``; 0 leaves them alone."""
    scale = limit / (norm + 1e-6)
    if limit > 0 and scale < 1:
        torch._foreach_mul_(grads, scale)


def gradients(optimizer: Any) -> list[torch.Tensor]:
    """Return the gradients of what an optimizer of this rank updates."""
    return [main.grad for group in optimizer.param_groups for main in group["params"] if main.grad is not None]
