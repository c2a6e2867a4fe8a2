"""The one door to Megatron-Core: imports it quietly and levels the differences between 0.16 and 0.17 to 0.19.

Everything of Megatron-Core that this package uses is taken from here, so that its import-time warnings are filtered
once and a new version is adapted to in one place.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_KNOWN_WARNINGS = (
    (DeprecationWarning, r"`torch\.jit\.script"),
    (FutureWarning, r"`torch\.jit\.script"),
    (UserWarning, r"(Transformer Engine and )?Apex (is|are) not installed"),
    (UserWarning, r"MimoModelConfig is experimental"),
    (DeprecationWarning, r"The following imports from `dynamic_context\.py`"),
    (DeprecationWarning, r"\s*The 'megatron\.core\.transformer\.custom_layers\.transformer_engine'"),
)


@contextlib.contextmanager
def _compile_nothing() -> Iterator[None]:
    """Leave functions as they are that torch.compile decorates inside this block, in a torch without CUDA.

    Megatron-Core's fused functions are for GPUs and are not called on the CPU; decorating them loads the compiler,
    which takes a quarter of the import. A CUDA build is left alone without asking for a device: that would start CUDA
    in the agent, whose forked ranks could not use it any more.
    """
    if torch.version.cuda is not None or torch.version.hip is not None:
        yield
        return
    compiler = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _as_it_is(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Stand for torch.compile as a decorator, with or without options."""
    del options
    return (lambda decorated: decorated) if function is None else function


with warnings.catch_warnings(), _compile_nothing():
    for _category, _message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=_message, category=_category)
    from megatron.core import optimizer as mcore_optimizer
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func, schedules
    from megatron.core.tensor_parallel import random as mcore_random
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

# One INFO line per process group, optimizer and bucket is noise in every rank's log.
logging.getLogger("megatron.core").setLevel(logging.WARNING)

__all__ = [
    "MLP",
    "AttnMaskType",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "GPTModel",
    "IdentityOp",
    "MLPSubmodules",
    "ModuleSpec",
    "OptimizerConfig",
    "RowParallelLinear",
    "SelfAttention",
    "SelfAttentionSubmodules",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "finalize_model_grads",
    "get_bias_dropout_add",
    "get_forward_backward_func",
    "get_megatron_optimizer",
    "grads_for_norm",
    "mcore_random",
    "parallel_state",
    "schedules",
    "tensor_parallel",
    "use_torch_adamw",
]


@contextlib.contextmanager
def use_torch_adamw() -> Iterator[None]:
    """Build optimizers in this context on torch's AdamW even where Transformer Engine or Apex bring their own.

    Checkpoints then hold the same state everywhere (``step`` per tensor, moments in fp32).
    """
    before = mcore_optimizer.USING_PYTORCH_OPTIMIZER
    mcore_optimizer.USING_PYTORCH_OPTIMIZER = True
    try:
        yield
    finally:
        mcore_optimizer.USING_PYTORCH_OPTIMIZER = before


def grads_for_norm(optimizer: Any) -> list[torch.Tensor]:
    """Return the gradients that count in the norm on this rank: replicas and tied copies once.

    Args:
        optimizer: One Megatron-Core optimizer, not a chain; the method's name changed after 0.16.
    """
    name = (
        "get_grads_for_grad_norm" if hasattr(optimizer, "get_grads_for_grad_norm") else "get_main_grads_for_grad_norm"
    )
    grads: list[torch.Tensor] = getattr(optimizer, name)()
    return grads
