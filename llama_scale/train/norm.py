"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) that works with sequence parallelism.

Shape letters: S sequence, B batch, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from llama_scale.train import cpu
from llama_scale.train.versions import TransformerConfig


class _RmsNormCpu(torch.autograd.Function):
    """Norm with few passes over memory: torch composes it of seven elementwise operations on the CPU.

    It keeps the input as it is and one fp32 number a token; bf16 is widened again in the backward pass.
    """

    @staticmethod
    def forward(ctx, x_SBH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x_SBH.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(wide.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_SBH, weight_H, inverse)
        return (wide * inverse).to(x_SBH.dtype).mul_(weight_H)

    @staticmethod
    def backward(ctx, grad_SBH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        # y = x r w with r = (mean(x^2) + eps)^(-1/2), so dL/dx = r (g w - x r^2 mean(g w x)).
        x, weight, inverse = ctx.saved_tensors
        hidden = x.shape[-1]
        scaled = x * inverse
        grad_weight = torch.mul(grad_SBH, scaled).reshape(-1, hidden).sum(0)
        grad = grad_SBH.float() * weight
        dot = torch.linalg.vecdot(grad, scaled).unsqueeze_(-1).div_(hidden)
        grad.addcmul_(scaled, dot, value=-1).mul_(inverse)
        return grad.to(x.dtype), grad_weight.to(weight.dtype), None


class RMSNorm(nn.Module):
    """Scale each token's vector to unit root mean square, then by a learned weight.

    Args:
        config: Transformer settings; with ``sequence_parallel`` the weight's gradient is summed over the tensor
            parallel group, because each rank normalises its own part of the sequence.
        hidden_size: H.
        eps: Added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=cpu.model_device()))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x_SBH: torch.Tensor) -> torch.Tensor:
        """Normalise over the last dim; the mean is taken in fp32."""
        if x_SBH.device.type == "cpu":
            return _RmsNormCpu.apply(x_SBH, self.weight, self.eps)
        return F.rms_norm(x_SBH, self.weight.shape, self.weight, self.eps)
