"""Adapters in a transformer layer: which rows are whose, and where each is called.

The base's matrix products run once over all rows of a micro-batch; an adapter changes what comes out for its rows. A
layer without adapters runs as if this module did not exist.

Shape letters: S sequence, B rows of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llama_scale.train.low_rank import Fused, apply_changes, low_rank_changes

if TYPE_CHECKING:
    from llama_scale.extensions.adapter import LayerAdapter, LowRank
    from llama_scale.train.engine import Route


def linked(hidden: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Return ``hidden`` as if it depended on ``others`` too: their gradients are zeros.

    So a pipeline's backward pass crosses layers in which nothing trains without computing them.
    """
    return _Linked.apply(hidden, *others)


def bound(hidden: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return ``hidden`` and stand-ins for parameters, whose gradients then arrive all at once and in this order.

    Every parameter gets one in every micro-batch, zeros if its stand-in is not used. So all replicas see the same
    gradients in the same order, whoever's rows they have: DeepSpeed fills the buckets that it sums over the replicas as
    gradients arrive, and would add one parameter's to another's.
    """
    return _Bound.apply(hidden, *parameters)


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors):
        return tuple(_alias(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *grads):
        # Those of unused outputs are zeros already.
        return grads


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    # Not a view: Megatron-Core frees what was sent to the next stage, which a view would not allow.
    return tensor.new_empty(0).set_(tensor.detach())


class _Linked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, *others):
        # Saving them would keep the activations alive that the linked-over layers need not keep.
        ctx.kinds = [(other.shape, other.dtype, other.device) for other in others]
        return _alias(hidden)

    @staticmethod
    def backward(ctx, grad):
        zeros = tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.kinds)
        return grad if ctx.needs_input_grad[0] else None, *zeros


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a layer.

    Args:
        adapter: Number of their adapter in the spec; None: the bare base.
        start: First row.
        stop: First row after them.
        source: First of the micro-batch's rows that they are, or are copies of.
    """

    adapter: int | None
    start: int
    stop: int
    source: int


def route_rows(routes: Iterable[Route], numbers: Mapping[str, int]) -> tuple[Rows, ...]:
    """Return the rows of a micro-batch that each go through one adapter (name -> number), or none."""
    return tuple(
        Rows(None if r.adapter is None else numbers[r.adapter], r.start, r.stop, source=r.start) for r in routes
    )


def encode_rows(rows: Iterable[Rows]) -> torch.Tensor:
    """Return rows as an int64 tensor ``[n, 4]`` on the CPU, the form in which recomputation keeps them.

    Megatron-Core's recomputation passes tensors only, each micro-batch its own: anything that a layer would look up
    elsewhere would be a later micro-batch's by then.
    """
    return torch.tensor(
        [(-1 if r.adapter is None else r.adapter, r.start, r.stop, r.source) for r in rows], dtype=torch.int64
    )


def decode_rows(encoded: torch.Tensor) -> tuple[Rows, ...]:
    """Undo ``encode_rows``."""
    return tuple(Rows(None if adapter < 0 else adapter, *places) for adapter, *places in encoded.tolist())


class LayerHooks:
    """The adapters of one layer, each applied to its rows.

    Args:
        adapters: Adapter's number in the spec -> its part in this layer.
    """

    def __init__(self, adapters: Mapping[int, LayerAdapter]) -> None:
        self._adapters = dict(adapters)
        self._rows: tuple[Rows, ...] = ()
        self._outputs = {number: adapter.outputs() for number, adapter in adapters.items()}
        self._blocks = {number: adapter.blocks() for number, adapter in adapters.items()}

    def select(self, rows: Sequence[Rows]) -> None:
        """Say whose rows the following calls are about."""
        self._rows = tuple(rows)

    def bind(self, hidden: torch.Tensor) -> torch.Tensor:
        """Let the adapters use stand-ins for what trains until ``release``; see ``bound``."""
        places = [
            (adapter, name, parameter)
            for adapter in self._adapters.values()
            for name, parameter in adapter.named_parameters()
            if parameter.requires_grad
        ]
        hidden, *stand_ins = bound(hidden, *(parameter for _, _, parameter in places))
        for (adapter, name, _), stand_in in zip(places, stand_ins, strict=True):
            adapter.bound[name] = stand_in
        return hidden

    def release(self) -> None:
        """Undo ``bind``."""
        for adapter in self._adapters.values():
            adapter.bound.clear()

    def changes_outputs(self, *targets: str) -> bool:
        """Tell whether an output of these linear layers is changed for any row."""
        return any(
            target in self._outputs[rows.adapter]
            for rows in self._rows
            if rows.adapter in self._adapters
            for target in targets
        )

    def input(self, target: str, x: torch.Tensor) -> torch.Tensor:
        """Change a row parallel layer's input ``[S, B, in]``."""
        return self._each(
            lambda number: target in self._adapters[number].changes_input,
            lambda number, part: self._adapters[number].input(target, x[:, part]),
            x,
        )

    def output(self, target: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Change a linear layer's output ``y`` of ``x``, ``[S, B, ...]``."""
        return self._each(
            lambda number: target in self._outputs[number],
            lambda number, part: self._adapters[number].output(target, x[:, part], y[:, part]),
            y,
        )

    def fused_output(self, x: torch.Tensor, y: torch.Tensor, fused: Fused) -> torch.Tensor | None:
        """Change a fused projection's output ``y`` of ``x``, ``[S, B, ...]``; None if parts must be changed apart."""
        changes: dict[int, dict[str, LowRank]] = {}
        for rows in self._rows:
            number = rows.adapter
            if number is None or number not in self._adapters or number in changes:
                continue
            found = low_rank_changes(self._adapters[number], [t for t in fused.parts if t in self._outputs[number]])
            if found is None:
                return None
            changes[number] = found
        return self._each(
            lambda number: bool(changes.get(number)),
            lambda number, part: apply_changes(
                self._adapters[number], changes[number], x[:, part], y[:, part], fused=fused
            ),
            y,
        )

    def block(self, which: str, y: torch.Tensor) -> torch.Tensor:
        """Change what a block adds to the residual stream, ``[S, B, hidden]``."""
        return self._each(
            lambda number: which in self._blocks[number],
            lambda number, part: self._adapters[number].block(which, y[:, part]),
            y,
        )

    def prefixes(self) -> list[tuple[slice, tuple[torch.Tensor, torch.Tensor] | None]]:
        """Return each run of rows with the keys and values before it; empty if no row has any."""
        found = [
            (slice(r.start, r.stop), self._adapters[r.adapter].prefix() if r.adapter in self._adapters else None)
            for r in self._rows
        ]
        return found if any(prefix is not None for _, prefix in found) else []

    def _each(
        self,
        concerns: Callable[[int], bool],
        change: Callable[[int, slice], torch.Tensor],
        whole: torch.Tensor,
    ) -> torch.Tensor:
        """Replace the rows of those adapters that ``concerns`` by what ``change`` makes of them."""
        parts: list[torch.Tensor] = []
        changed = False
        for rows in self._rows:
            part = slice(rows.start, rows.stop)
            if rows.adapter in self._adapters and concerns(rows.adapter):
                changed = True
                parts.append(change(rows.adapter, part))
            else:
                parts.append(whole[:, part])
        if not changed:
            return whole
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def split_parts(fused: torch.Tensor, sizes: Sequence[int], *, dim: int) -> Sequence[torch.Tensor]:
    """Cut a fused projection along a dim into contiguous tensors; their gradients are written as one."""
    return _SplitParts.apply(fused, tuple(sizes), dim)


class _SplitParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fused: torch.Tensor, sizes: tuple[int, ...], dim: int) -> Any:
        ctx.dim = dim
        return tuple(part.contiguous() for part in fused.split(sizes, dim=dim))

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> Any:
        return torch.cat(grads, dim=ctx.dim), None, None
