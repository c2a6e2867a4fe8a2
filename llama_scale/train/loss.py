"""Language-model loss over a vocabulary that may be divided by tensor parallelism, fused with the output layer.

Shape letters: N tokens, H hidden, V rows of the vocabulary that exist on this rank (padding rows take no part).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

_BLOCK_ELEMENTS = 1 << 20
"""Logits that are turned into probabilities at once: they stay in the cache (4 MiB)."""

_CHUNK_ELEMENTS = 1 << 27
"""Logits that exist at once: a bound on memory (512 MiB); the gradient's matrix products run over a whole chunk."""


@dataclass(frozen=True, slots=True)
class VocabularyRows:
    """The rows of the output layer that a tensor parallel rank holds.

    Args:
        start: Token id of the first row.
        count: Rows that are tokens; the rows behind them are padding.
        group: Tensor parallel group, None for one rank.
    """

    start: int
    count: int
    group: dist.ProcessGroup | None


def linear_loss(
    hidden: torch.Tensor, weight: torch.Tensor, *, labels: torch.Tensor, mask: torch.Tensor, rows: VocabularyRows
) -> torch.Tensor:
    """Return the sum over tokens of ``mask * -log softmax(hidden @ weight.T)[label]``, equal on all tensor ranks.

    Args:
        hidden: ``[N, H]``. Its gradient here is this rank's rows' part: the caller's autograd sums it over the tensor
            parallel group.
        weight: Output layer ``[padded V, H]``; padding rows get zero gradient.
        labels: ``[N]``, token ids of the whole vocabulary.
        mask: ``[N]``, fp32.
        rows: Which rows of the vocabulary ``weight`` holds.
    """
    return _LinearLoss.apply(hidden, weight, (labels, mask), rows)


class _LinearLoss(torch.autograd.Function):
    """The gradient is computed with the loss, chunk by chunk, so that logits are neither kept nor copied."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, rows: VocabularyRows):
        labels, mask = targets
        existing = weight[: rows.count]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = None
        for part in _chunks(hidden, rows):
            logits = (hidden[part] @ existing.t()).float()
            wanted = wants_hidden or wants_weight
            total += _losses_and_gradient(logits, labels[part], mask[part], rows, gradient=wanted).sum()
            grad = logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, existing, out=grad_hidden[part])
            if wants_weight:
                grad_weight = _accumulate(grad_weight, grad, hidden[part], weight=weight, rows=rows)
        ctx.gradients = grad_hidden, grad_weight
        return total

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.gradients
        del ctx.gradients
        # Nearly always 1; on CUDA looking would cost more than multiplying.
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:
            for grad in (grad_hidden, grad_weight):
                if grad is not None:
                    grad.mul_(grad_loss)
        return grad_hidden, grad_weight, None, None


def linear_log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, *, labels: torch.Tensor, rows: VocabularyRows
) -> torch.Tensor:
    """Return ``log softmax(hidden @ weight.T)[label]`` of every token, ``[N]`` fp32, equal on all tensor ranks.

    What the losses of ``linear_loss`` are for one mask, these are for any function of them: backward takes a weight
    for each token, which may depend on all the values.

    Args:
        hidden: ``[N, H]``. Its gradient here is this rank's rows' part, as in ``linear_loss``.
        weight: Output layer ``[padded V, H]``; padding rows take no part.
        labels: ``[N]``, token ids of the whole vocabulary.
        rows: Which rows of the vocabulary ``weight`` holds.
    """
    return _LinearLogProbabilities.apply(hidden, weight, labels, rows)


def sharded_log_softmax(logits: torch.Tensor, rows: VocabularyRows) -> torch.Tensor:
    """Return fp32 log-probabilities of this rank's part ``[..., V]`` of the vocabulary, normalised over all of it."""
    logits = logits.float()
    normaliser = torch.logsumexp(logits, dim=-1)
    if rows.group is not None:
        parts = [torch.empty_like(normaliser) for _ in range(rows.group.size())]
        dist.all_gather(parts, normaliser.contiguous(), group=rows.group)
        normaliser = torch.logsumexp(torch.stack(parts), dim=0)
    return logits - normaliser.unsqueeze(-1)


class _LinearLogProbabilities(torch.autograd.Function):
    """A token's gradient by its hidden state is one vector, known in the forward pass, times the weight it is given.

    So the logits are neither kept nor computed again. The gradient by the output layer is a sum over tokens with these
    weights in it: only where that is wanted, the logits are computed a second time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, rows: VocabularyRows):
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        existing = weight[: rows.count]
        result = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        units = torch.empty_like(hidden) if wants_hidden else None
        for part in _chunks(hidden, rows):
            logits = (hidden[part] @ existing.t()).float()
            ones = torch.ones_like(result[part])
            losses = _losses_and_gradient(logits, labels[part], ones, rows, gradient=wants_hidden)
            torch.neg(losses, out=result[part])
            if units is not None:
                torch.mm(logits.to(hidden.dtype), existing, out=units[part])
        ctx.units, ctx.rows = units, rows
        ctx.save_for_backward(*((hidden, weight, labels) if wants_weight else ()))
        return result

    @staticmethod
    def backward(ctx, grad):
        units, rows = ctx.units, ctx.rows
        del ctx.units
        grad_hidden = grad_weight = None
        if units is not None:
            grad_hidden = units.mul_(-grad.unsqueeze(1))
        if ctx.needs_input_grad[1]:
            hidden, weight, labels = ctx.saved_tensors
            for part in _chunks(hidden, rows):
                logits = (hidden[part] @ weight[: rows.count].t()).float()
                _losses_and_gradient(logits, labels[part], -grad[part], rows, gradient=True)
                logits = logits.to(hidden.dtype)
                grad_weight = _accumulate(grad_weight, logits, hidden[part], weight=weight, rows=rows)
        return grad_hidden, grad_weight, None, None


def _chunks(hidden: torch.Tensor, rows: VocabularyRows) -> Iterator[slice]:
    """Cut the tokens into parts whose logits may exist at once."""
    tokens = hidden.shape[0]
    step = max(1, min(tokens, _CHUNK_ELEMENTS // max(1, rows.count)))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))


def _accumulate(
    total: torch.Tensor | None,
    grad_NV: torch.Tensor,
    hidden_NH: torch.Tensor,
    *,
    weight: torch.Tensor,
    rows: VocabularyRows,
) -> torch.Tensor:
    if total is None:
        total = torch.empty_like(weight)
        total[rows.count :].zero_()
        torch.mm(grad_NV.t(), hidden_NH, out=total[: rows.count])
        return total
    total[: rows.count].addmm_(grad_NV.t(), hidden_NH)
    return total


def _losses_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, rows: VocabularyRows, *, gradient: bool
) -> torch.Tensor:
    """Return the masked losses ``[N]`` of fp32 ``logits [N, V]`` and turn these, in place, into their gradient."""
    local = labels - rows.start
    here = (local >= 0) & (local < rows.count)
    local = local.clamp(0, max(0, rows.count - 1)).unsqueeze(1)
    maximum, sums, target = _local_statistics(logits, local, here)
    if rows.group is not None:
        maximum, sums, target, scale = _over_group(maximum, sums, target, rows.group)
    else:
        scale = None
    losses = (sums.log() + maximum - target) * mask
    if gradient and rows.count:
        factor = mask / sums if scale is None else mask * scale / sums
        size = max(1, _BLOCK_ELEMENTS // rows.count)
        for block, block_factor in zip(logits.split(size), factor.unsqueeze(1).split(size), strict=True):
            block.mul_(block_factor)
        logits.scatter_add_(1, local, torch.where(here, -mask, 0.0).unsqueeze(1))
    return losses


def _local_statistics(
    logits: torch.Tensor, local: torch.Tensor, here: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each row's maximum, sum of ``exp(x - maximum)`` and label's logit (0 if elsewhere); exp in place."""
    tokens, vocab = logits.shape
    if vocab == 0:
        none = logits.new_zeros(tokens)
        return torch.full_like(none, -torch.inf), none, none
    target = torch.where(here, logits.gather(1, local).squeeze(1), 0.0)
    maximum = logits.new_empty(tokens)
    sums = logits.new_empty(tokens)
    for start in range(0, tokens, max(1, _BLOCK_ELEMENTS // vocab)):
        part = slice(start, start + max(1, _BLOCK_ELEMENTS // vocab))
        block = logits[part]
        torch.amax(block, dim=1, out=maximum[part])
        block.sub_(maximum[part].unsqueeze(1)).exp_()
        torch.sum(block, dim=1, out=sums[part])
    return maximum, sums, target


def _over_group(
    maximum: torch.Tensor, sums: torch.Tensor, target: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Combine the ranks' statistics in one exchange; the last value rescales this rank's exponentials."""
    own = torch.stack((maximum, sums, target))
    everyone = own.new_empty(group.size(), *own.shape)
    dist.all_gather_into_tensor(everyone.view(-1), own.view(-1), group=group)
    highest = everyone[:, 0].amax(0)
    total = (everyone[:, 1] * (everyone[:, 0] - highest).exp()).sum(0)
    return highest, total, everyone[:, 2].sum(0), (maximum - highest).exp()
