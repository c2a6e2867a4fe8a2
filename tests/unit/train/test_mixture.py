"""The mixture's laws, on distributions small enough to enumerate: 5 tokens, every sequence of 4."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from llama_scale.train import mixture as m

VOCAB, LENGTH, ADAPTERS = 5, 4, 3
PRIOR = torch.log_softmax(torch.tensor([0.3, -1.0, 0.8]), 0)


def table(adapter: int, prefix: tuple[int, ...]) -> torch.Tensor:
    """Return adapter i's log p(. | prefix): any function of its prefix will do."""
    generator = torch.Generator().manual_seed(sum((t + 1) * 7**k for k, t in enumerate(prefix)) * 10 + adapter)
    return torch.log_softmax(2 * torch.randn(VOCAB, generator=generator), 0)


def gate(prefix: tuple[int, ...]) -> torch.Tensor:
    return torch.log_softmax(table(9, prefix)[:ADAPTERS], 0)


SEQUENCES = list(itertools.product(range(VOCAB), repeat=LENGTH))


def label_log_probs(sequences: list[tuple[int, ...]]) -> torch.Tensor:
    """Return ``[N, B, S]``: position t predicts token t from those before it (the first from nothing)."""
    rows = [[[float(table(i, s[:t])[s[t]]) for t in range(LENGTH)] for s in sequences] for i in range(ADAPTERS)]
    return torch.tensor(rows)


LOG_PROBS = label_log_probs(SEQUENCES)
GATE = torch.tensor([[gate(s[:t]).tolist() for t in range(LENGTH)] for s in SEQUENCES]).permute(2, 0, 1)
ONES = torch.ones(len(SEQUENCES), LENGTH)


def units(
    weights: str,
    *,
    log_probs: torch.Tensor = LOG_PROBS,
    mask: torch.Tensor = ONES,
    log_prior: torch.Tensor = PRIOR,
    row: int | None = None,
) -> m.Units:
    """Make the units of all sequences, or of one."""
    rows = slice(None) if row is None else slice(row, row + 1)
    log_probs, mask = log_probs[:, rows], mask[rows]
    if weights == "posterior":
        return m.document_units(log_probs, log_prior, mask=mask, documents=None)
    return m.token_units(log_probs, GATE[:, rows] if weights == "gate" else log_prior, mask=mask)


def brute_force(weights: str, sequence: tuple[int, ...]) -> float:
    """Return the sequence's probability by the definitions, in ordinary numbers."""
    each = [[math.exp(table(i, sequence[:t])[sequence[t]]) for t in range(LENGTH)] for i in range(ADAPTERS)]
    prior = PRIOR.exp().tolist()
    if weights == "posterior":
        return sum(prior[i] * math.prod(each[i]) for i in range(ADAPTERS))
    token_weights = [prior if weights == "prior" else gate(sequence[:t]).exp().tolist() for t in range(LENGTH)]
    return math.prod(sum(w[i] * each[i][t] for i in range(ADAPTERS)) for t, w in enumerate(token_weights))


def next_token_weights(weights: str, log_probs: torch.Tensor = LOG_PROBS) -> torch.Tensor:
    """Return the log weights ``[N, B, S]`` that predict each position."""
    if weights == "posterior":
        return m.prefix_log_weights(log_probs, PRIOR)
    return GATE if weights == "gate" else PRIOR.view(-1, 1, 1).expand_as(log_probs)


ALL = pytest.mark.parametrize("weights", ["prior", "posterior", "gate"])


@ALL
def test_likelihood_is_that_of_brute_force_and_sums_to_one(weights: str) -> None:
    total = 0.0
    for number, sequence in enumerate(SEQUENCES[::7]):
        loss = m.negative_log_likelihood(units(weights, row=7 * number))
        assert math.exp(-float(loss)) == pytest.approx(brute_force(weights, sequence), rel=1e-5)
    whole = units(weights)
    logs = torch.logsumexp(whole.log_likelihoods + whole.log_weights, 0) * whole.counts
    for logs_of_sequence in logs.view(len(SEQUENCES), LENGTH):
        total += math.exp(float(logs_of_sequence.sum()))
    assert total == pytest.approx(1.0, abs=1e-5)


@ALL
def test_next_token_probabilities_sum_to_one_and_chain_to_the_likelihood(weights: str) -> None:
    log_weights = next_token_weights(weights)
    chained = torch.zeros(len(SEQUENCES))
    for t in range(LENGTH):
        full = torch.stack([torch.stack([table(i, s[:t]) for s in SEQUENCES]) for i in range(ADAPTERS)])
        mixed = m.mix(full, log_weights[:, :, t])
        torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(len(SEQUENCES)))
        chained += mixed[torch.arange(len(SEQUENCES)), torch.tensor([s[t] for s in SEQUENCES])]

    expected = torch.tensor([brute_force(weights, s) for s in SEQUENCES]).log()
    torch.testing.assert_close(chained, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(-chained.sum(), m.negative_log_likelihood(units(weights)))


@pytest.mark.parametrize("weights", ["prior", "posterior"])
def test_one_adapter_and_a_one_hot_prior_are_that_adapter(weights: str) -> None:
    alone = units(weights, log_probs=LOG_PROBS[1:2], log_prior=torch.zeros(1))
    hot = torch.log(torch.tensor([0.0, 1.0, 0.0])).requires_grad_()
    chosen = units(weights, log_prior=hot)

    torch.testing.assert_close(m.negative_log_likelihood(alone), -LOG_PROBS[1].sum())
    torch.testing.assert_close(m.negative_log_likelihood(chosen), -LOG_PROBS[1].sum())
    torch.testing.assert_close(m.expected_loss(chosen), -LOG_PROBS[1].sum())
    torch.testing.assert_close(m.shares(chosen)[:3] / m.shares(chosen)[3], torch.tensor([0.0, 1.0, 0.0]).double())
    for loss in (m.negative_log_likelihood, m.expected_loss):
        (grad,) = torch.autograd.grad(loss(chosen), hot, retain_graph=True)
        assert grad.isfinite().all()


@ALL
def test_identical_adapters_are_one_adapter(weights: str) -> None:
    same = LOG_PROBS[:1].expand(ADAPTERS, -1, -1)

    torch.testing.assert_close(m.negative_log_likelihood(units(weights, log_probs=same)), -LOG_PROBS[0].sum())
    if weights == "posterior":
        learned = m.prefix_log_weights(same, PRIOR)
        torch.testing.assert_close(learned, PRIOR.view(-1, 1, 1).expand_as(learned))


@ALL
@pytest.mark.parametrize("loss", [m.negative_log_likelihood, m.expected_loss])
def test_gradients_are_responsibilities_and_finite_differences_agree(
    weights: str, loss: Callable[[m.Units], torch.Tensor]
) -> None:
    mask = (torch.rand(len(SEQUENCES), LENGTH, generator=torch.Generator().manual_seed(1)) > 0.3).float()
    log_probs, raw = LOG_PROBS.clone().requires_grad_(), torch.tensor([0.3, -1.0, 0.8], requires_grad=True)

    def value(log_probs: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        prior = torch.log_softmax(raw, 0)
        return loss(units(weights, log_probs=log_probs, mask=mask, log_prior=prior))

    grads = torch.autograd.grad(value(log_probs, raw), (log_probs, raw), allow_unused=True)
    r = m.log_responsibilities(units(weights, mask=mask)).exp().view(ADAPTERS, -1, LENGTH).float()
    if weights == "posterior":
        r = r[:, :, :1]
    torch.testing.assert_close(grads[0], -(r * mask))

    step = 1e-2
    for place in ((0, 3, 1), (2, 60, 0), (1, 100, 3)):
        moved = [LOG_PROBS.clone(), LOG_PROBS.clone()]
        moved[0][place] += step
        moved[1][place] -= step
        # The whole sum is too coarse in fp32 for a difference in one term: look at that row alone.
        low, high = (float(loss(units(weights, log_probs=x, mask=mask, row=place[1]))) for x in moved)
        assert float(grads[0][place]) == pytest.approx((low - high) / (2 * step), abs=2e-3)
    if weights == "gate":
        assert grads[1] is None
    else:
        count = units(weights, mask=mask).counts
        expected = count.sum() * PRIOR.exp() - m.shares(units(weights, mask=mask))[:-1].float()
        torch.testing.assert_close(grads[1], expected.to(grads[1].dtype), rtol=1e-4, atol=1e-4)


def test_posterior_begins_anew_at_a_document() -> None:
    documents = torch.tensor([[3, 3, 5, 5, 5, 3], [0, 1, 1, 1, 1, 9]])
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(2, 2, 6, generator=generator)
    mask = torch.tensor([[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0]]).float()
    prior = torch.log(torch.tensor([0.25, 0.75]))

    found = m.negative_log_likelihood(m.document_units(log_probs, prior, mask=mask, documents=documents))

    expected = 0.0
    for row, pieces in enumerate([[[0, 1], [2, 3, 4], [5]], [[0], [1, 2, 3, 4], [5]]]):
        for piece in pieces:
            if mask[row, piece].sum():
                sums = (log_probs[:, row, piece] * mask[row, piece]).sum(1)
                expected -= float(torch.logsumexp(sums + prior, 0))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    total = m.shares(m.document_units(log_probs, prior, mask=mask, documents=documents))
    assert total[2] == 4 and float(total[:2].sum()) == pytest.approx(4)

    weights = m.prefix_log_weights(log_probs, prior, documents=documents)
    torch.testing.assert_close(weights[:, 0, 2], prior)
    torch.testing.assert_close(weights[:, 0, 5], prior)
    torch.testing.assert_close(weights[:, 0, 4], torch.log_softmax(prior + log_probs[:, 0, 2:4].sum(1), 0))
    masked = m.prefix_log_weights(log_probs, prior, documents=documents, mask=mask)
    torch.testing.assert_close(masked[:, 0, 4], torch.log_softmax(prior + log_probs[:, 0, 3], 0))


def test_posterior_of_a_long_document_keeps_its_digits() -> None:
    log_probs = torch.full((2, 1, 8192), -11.0)
    log_probs[1] -= 1e-4
    units = m.document_units(log_probs, torch.log(torch.tensor([0.5, 0.5])), mask=torch.ones(1, 8192), documents=None)

    # fp32 has steps of 1e-6 at 11, and of 8e-3 at the sum, 90,000.
    expected = torch.sigmoid((log_probs[0] - log_probs[1]).double().sum())
    assert float(m.log_responsibilities(units)[0, 0].exp()) == pytest.approx(float(expected), rel=1e-9)


def test_complete_data_teach_the_weights_their_shares() -> None:
    raw = torch.zeros(3, requires_grad=True)
    prior = torch.log_softmax(raw, 0)
    u = m.Units(
        log_likelihoods=torch.zeros(3, 5), log_weights=prior.unsqueeze(1), counts=torch.tensor([1.0, 1, 0, 2, 1])
    )
    owners = torch.tensor([0, 2, 1, 2, 0])

    loss = m.weight_loss(u, owners)
    (grad,) = torch.autograd.grad(loss, raw)

    assert loss.item() == pytest.approx(5 * math.log(3), rel=1e-6)
    torch.testing.assert_close(grad, 5 / 3 - torch.tensor([2.0, 0.0, 3.0]))
