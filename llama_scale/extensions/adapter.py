"""The public, heavy side of an adapter plugin: what one adapter does inside one transformer layer.

This module imports torch alone and is copied into exported Hugging Face models, where the same class runs without
llama-scale on one process. Shape letters: S sequence, R rows (sequences of one adapter), "local": this tensor parallel
rank's part.

What is divided: q/k/v/gate/up projections are column parallel (their output is local, their input whole), o_proj and
down_proj are row parallel (their input is local, their output whole). With sequence parallelism everything "whole"
holds this rank's part of S instead, and the methods of ``Tensor`` move between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROW = ("o_proj", "down_proj")
LINEARS = (*COLUMN, *ROW)
"""The linear layers of a LLaMA layer, by their Hugging Face names."""


class Tensor:
    """Collectives over the tensor parallel group; this class is the one-process case, where all do nothing."""

    size = 1
    rank = 0
    sequence_parallel = False

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Go from a whole tensor into local work: identity forward, gradients summed over the group backward.

        With sequence parallelism: gather S forward, sum and scatter the gradient backward.
        """
        return x

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Go from local partial sums to the whole: sum over the group forward, identity backward.

        With sequence parallelism: sum and scatter S forward, gather the gradient backward.
        """
        return x

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the group, without gradient (norms, statistics)."""
        return x


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """What an adapter knows of the layer it sits in.

    Args:
        layer: Number of the layer in the model, from 0.
        sizes: ``hidden_size, ffn_hidden_size, num_heads, num_kv_heads, head_dim, num_layers`` of the whole model.
        tensor: The tensor parallel group.
        base_weight: Target -> the base's local matrix ``[out, in]`` of that linear layer, without gradient.
        seed: The run's seed, for values that are the same in every layer.
    """

    layer: int
    sizes: Mapping[str, int]
    tensor: Tensor
    base_weight: Callable[[str], torch.Tensor]
    seed: int = 0
    shared: dict[str, Any] = field(default_factory=dict)
    """Room for values that all layers of this adapter on this rank share."""


@dataclass(frozen=True)
class LowRank:
    """A change of a linear layer's output ``y`` of ``x``: ``factor * (y + scale * b a x)``.

    Args:
        a: ``[rank, in]``; column parallel layers have it whole.
        b: ``[out, rank]``, local for column parallel layers.
        scale: A number.
        factor: ``[out]``, local for column parallel layers; None: 1.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    factor: torch.Tensor | None = None


def attach(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter of an adapter or gate under its dotted name, whatever torch's classes call their own."""
    *path, leaf = name.split(".")
    for part in path:
        module._modules.setdefault(part, nn.Module())
        module = module._modules[part]
    module._parameters[leaf] = parameter


def attached(module: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter that was attached under this name."""
    *path, leaf = name.split(".")
    for part in path:
        module = module._modules[part]
    return module._parameters[leaf]


class LayerAdapter(nn.Module):
    """One adapter in one layer; subclass this.

    Its parameters are those that the descriptor's ``parameters`` names: they are made, initialised, divided, saved and
    loaded by llama-scale, and read by ``self.weight(name)`` (this rank's part). They are fp32; inputs may be bf16:
    compute in fp32 and return the input's dtype.

    Args:
        options: The adapter's options; their values only (``options.rank``), because an exported model has no methods.
        context: The layer.
    """

    changes_input: ClassVar[frozenset[str]] = frozenset()
    """Targets of LINEARS whose input ``input`` changes."""

    def __init__(self, options: Any, context: LayerContext) -> None:
        super().__init__()
        self.options = options
        self.context = context
        self.bound: dict[str, torch.Tensor] = {}
        """What stands for parameters in a training pass, so that their gradients arrive together."""

    def weight(self, name: str) -> torch.Tensor:
        """Return this rank's part of a parameter; always read through this, never kept from call to call."""
        return self.bound[name] if name in self.bound else attached(self, name)

    def outputs(self) -> frozenset[str]:
        """Return the targets of LINEARS whose output ``output`` changes."""
        return frozenset()

    def blocks(self) -> frozenset[str]:
        """Return which of ``attention`` and ``mlp`` have their result changed by ``block``."""
        return frozenset()

    def input(self, target: str, x: torch.Tensor) -> torch.Tensor:
        """Change the input ``[S, R, in]`` of o_proj or down_proj (local)."""
        del target
        return x

    def output(self, target: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Change a linear layer's output.

        Args:
            target: Which.
            x: Its input ``[S, R, in]``: whole for column parallel targets, local for row parallel ones.
            y: Its output ``[S, R, out]``: local for column parallel targets, whole for row parallel ones.
        """
        del target, x
        return y

    def low_rank(self, target: str) -> LowRank | None:
        """Return what ``output`` does to a column parallel target, if it is of this form; None: call ``output``.

        Layers with one input are computed as one: all their changes of this form then take two matrix products.
        """
        del target
        return None

    def block(self, which: str, y: torch.Tensor) -> torch.Tensor:
        """Change what the attention or MLP block adds to the residual stream, ``[S, R, hidden]`` (whole)."""
        del which
        return y

    def prefix(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return keys and values ``[P, local kv heads, head_dim]`` that every position attends to, without rotation."""
        return None

    def merged_weight(self, target: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the whole matrix ``[out, in]`` with the adapter added into it (fp32, one process).

        Only called where the descriptor says that it can be merged.
        """
        del target
        return weight
