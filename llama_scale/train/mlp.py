"""The SwiGLU feed-forward block (Shazeer 2020, arXiv:2002.05202) on Megatron-Core's parallel linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from llama_scale.train.adapting import split_parts
from llama_scale.train.low_rank import Fused
from llama_scale.train.versions import MLP, MLPSubmodules, TransformerConfig

if TYPE_CHECKING:
    from llama_scale.train.adapting import LayerHooks


class _SwiGlu(torch.autograd.Function):
    """``silu(gate) * up`` of a ``[..., 2 F]`` input; keeps only the input, and writes one gradient buffer."""

    @staticmethod
    def forward(ctx, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return result


class LlamaMLP(MLP):
    """Gate and up projection as one column-parallel matrix, SwiGLU, row-parallel down projection."""

    linear_classes: tuple[type, type]
    """Classes of the column- and the row-parallel layer; `layers.block_spec` sets them in a subclass."""

    hooks: LayerHooks | None = None
    """The layer's adapters, if it has any; `layers.LlamaLayer` sets them."""

    def __init__(self, config: TransformerConfig, **context: Any) -> None:
        # TransformerLayer passes nothing in Megatron-Core 0.16, the process groups and a name in later versions.
        groups = context.get("pg_collection")
        column, row = self.linear_classes
        super().__init__(
            config,
            MLPSubmodules(linear_fc1=column, linear_fc2=row),
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=None if groups is None else groups.tp,
        )

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map ``[S, B, H]`` to ``[S, B, H]``; the second value, a bias, is None."""
        gate_up, _bias = self.linear_fc1(hidden_states)
        hooks = self.hooks
        if hooks is None:
            return self.linear_fc2(_SwiGlu.apply(gate_up))
        if hooks.changes_outputs("gate_proj", "up_proj"):
            gate_up = _adapted(gate_up, hidden_states, hooks)
        inner = hooks.input("down_proj", _SwiGlu.apply(gate_up))
        output, bias = self.linear_fc2(inner)
        return hooks.block("mlp", hooks.output("down_proj", inner, output)), bias


def _adapted(gate_up: torch.Tensor, x: torch.Tensor, hooks: LayerHooks) -> torch.Tensor:
    """Let adapters change gate and up, the halves of ``[S, B, 2 F]``."""
    width = gate_up.shape[-1] // 2
    whole = hooks.fused_output(x, gate_up, Fused({"gate_proj": width, "up_proj": width}))
    if whole is not None:
        return whole
    gate, up = split_parts(gate_up, (width, width), dim=-1)
    return torch.cat((hooks.output("gate_proj", x, gate), hooks.output("up_proj", x, up)), dim=-1)
