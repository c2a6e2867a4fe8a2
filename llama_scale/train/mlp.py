"""The SwiGLU feed-forward block (Shazeer 2020, arXiv:2002.05202) on Megatron-Core's parallel linear layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llama_scale.train.versions import MLP, MLPSubmodules, TransformerConfig


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
        return self.linear_fc2(_SwiGlu.apply(gate_up))
