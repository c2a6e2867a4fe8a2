"""The mixture of N adapters' distributions, in log space: likelihood, responsibilities, next-token weights.

    p(x_t | x_<t) = sum_i p(x_t | x_<t, a_i) p(a_i)

Pure functions on fp32 tensors; torch alone is imported. What was drawn from one adapter is a *unit*: a token
(``prior``, ``gate``) or a document (``posterior``). A token's weight in the loss, its mask, is its share in its unit: a
position of mask 0 is a condition of what follows, and says nothing about the adapter.

Shape letters: N adapters, B rows, S sequence, K units, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What a likelihood is made of.

    Args:
        log_likelihoods: ``[N, K]`` log p(unit | a_i).
        log_weights: ``[N, K]`` (or ``[N, 1]``) log p(a_i), normalised over N.
        counts: ``[K]`` weight of each unit in the log-likelihood; 0 leaves it out.
    """

    log_likelihoods: torch.Tensor
    log_weights: torch.Tensor
    counts: torch.Tensor


def token_units(log_probs: torch.Tensor, log_weights: torch.Tensor, *, mask: torch.Tensor) -> Units:
    """Make every token a unit of its own.

    Args:
        log_probs: ``[N, B, S]`` log p_i of each position's label.
        log_weights: ``[N]`` (a prior) or ``[N, B, S]`` (a gate), normalised over N.
        mask: ``[B, S]`` weight of each position in the loss.
    """
    shape = (log_weights.shape[0], -1)
    return Units(
        log_likelihoods=log_probs.flatten(1),
        log_weights=log_weights.reshape(shape),
        counts=mask.flatten(),
    )


def document_units(
    log_probs: torch.Tensor, log_prior: torch.Tensor, *, mask: torch.Tensor, documents: torch.Tensor | None
) -> Units:
    """Make every document a unit: its tokens, as far as the mask counts them, come from one adapter.

    Sums over a document are kept in fp64: thousands of nats in fp32 would leave the posterior three digits.

    Args:
        log_probs: ``[N, B, S]`` log p_i of each position's label.
        log_prior: ``[N]``.
        mask: ``[B, S]`` weight of each position in the loss.
        documents: ``[B, S]`` document of each position, or None: each row is one.

    Returns:
        K = B * S units, of which those that no document fills have count 0.
    """
    places = torch.zeros_like(mask, dtype=torch.int64) if documents is None else _segments(documents)
    weighted = (log_probs * mask).double()
    sums = torch.zeros_like(weighted).scatter_add(2, places.expand_as(weighted), weighted)
    counted = torch.zeros_like(mask).scatter_add(1, places, mask.abs())
    return Units(
        log_likelihoods=sums.flatten(1),
        log_weights=log_prior.double().unsqueeze(1),
        counts=(counted.flatten() > 0).to(mask.dtype),
    )


def _segments(documents_BS: torch.Tensor) -> torch.Tensor:
    """Number each row's documents from 0 in their order; one number may come back later, as another document."""
    places = torch.zeros_like(documents_BS)
    places[:, 1:] = (documents_BS[:, 1:] != documents_BS[:, :-1]).cumsum(1)
    return places


def unit_losses(units: Units) -> torch.Tensor:
    """Return ``[K]`` ``-counts_k log sum_i p(a_i) p(k | a_i)``; their gradient holds the responsibilities."""
    return -(units.counts * torch.logsumexp(units.log_likelihoods + units.log_weights, dim=0))


def negative_log_likelihood(units: Units) -> torch.Tensor:
    """Return the sum of ``unit_losses``, a scalar."""
    return unit_losses(units).sum().float()


def log_responsibilities(units: Units) -> torch.Tensor:
    """Return ``[N, K]`` log p(a_i | k): the E-step."""
    return torch.log_softmax(units.log_likelihoods + units.log_weights, dim=0)


def expected_loss(units: Units) -> torch.Tensor:
    """Return the negative log-likelihood with the gradient of the expected complete-data one.

    That is EM's M-step: ``-sum_k counts_k sum_i r_ik (log p(k | a_i) + log p(a_i))`` with the responsibilities r of the
    parameters as they are, held fixed.
    """
    r = log_responsibilities(units).detach().exp()
    # An adapter whose weight is 0 has responsibility 0, and 0 * -inf is none of the sum's terms.
    terms = torch.where(r > 0, r * (units.log_likelihoods + units.log_weights), 0.0)
    expected = -(units.counts * terms.sum(0)).sum().float()
    return negative_log_likelihood(units).detach() + (expected - expected.detach())


def weight_loss(units: Units, owners: torch.Tensor) -> torch.Tensor:
    """Return ``-sum_k counts_k log p(a_owner(k))``: what data of known adapters say about the weights.

    Args:
        units: Only weights and counts matter.
        owners: ``[K]`` number of the adapter that each unit belongs to.
    """
    weights = units.log_weights.expand(-1, owners.shape[0]).gather(0, owners.unsqueeze(0)).squeeze(0)
    return -torch.where(units.counts > 0, units.counts * weights, 0.0).sum().float()


def shares(units: Units) -> torch.Tensor:
    """Return ``[N + 1]`` fp64 without gradient: the counts that each adapter is responsible for, then all of them."""
    with torch.no_grad():
        r = log_responsibilities(units).double().exp() * units.counts.double()
        each = r.sum(1)
        return torch.cat((each, units.counts.double().sum().unsqueeze(0)))


def prefix_log_weights(
    log_probs: torch.Tensor,
    log_prior: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    documents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``[N, B, S]`` log p(a_i | prefix): the weights with which ``posterior`` predicts each position's label.

    The prefix of a position is its document up to it, so that at a document's first token the prior is left alone.

    Args:
        log_probs: ``[N, B, S]`` log p_i of each position's label.
        log_prior: ``[N]``.
        mask: ``[B, S]``; positions of weight 0 are no evidence. None: all are.
        documents: ``[B, S]`` document of each position, or None: each row is one.
    """
    evidence = log_probs.double() if mask is None else (log_probs * mask).double()
    before = evidence.cumsum(2) - evidence
    if documents is not None:
        places = _segments(documents)
        first = torch.searchsorted(places, places)  # each document's first position
        before = before - before.gather(2, first.expand_as(before))
    return torch.log_softmax(before + log_prior.double().view(-1, 1, 1), dim=0).float()


def mix(log_probs: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
    """Return ``[..., V]`` log p of every token.

    Args:
        log_probs: ``[N, ..., V]`` log p_i of every token, or of this rank's part of the vocabulary.
        log_weights: ``[N]`` or ``[N, ...]``, normalised over N.
    """
    missing = log_probs.dim() - log_weights.dim()
    return torch.logsumexp(log_probs + log_weights[(...,) + (None,) * missing], dim=0)
