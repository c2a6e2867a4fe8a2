from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama_scale.train import loss as module
from llama_scale.train.loss import VocabularyRows, linear_log_probabilities, linear_loss


@pytest.mark.parametrize(("chunk", "block"), [(1 << 27, 1 << 20), (7 * 11, 11), (1, 1)])
def test_loss_and_gradients_equal_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    vocab, padded = 11, 16
    hidden = torch.randn(23, 6, requires_grad=True)
    weight = torch.randn(padded, 6, requires_grad=True)
    labels = torch.randint(vocab, (23,))
    mask = (torch.rand(23) > 0.3).float()

    own = linear_loss(hidden, weight, labels=labels, mask=mask, rows=VocabularyRows(0, vocab, None))
    grads = torch.autograd.grad(own * 0.5, (hidden, weight))

    each = F.cross_entropy(hidden @ weight[:vocab].t(), labels, reduction="none")
    expected = (each * mask).sum()
    expected_grads = torch.autograd.grad(expected * 0.5, (hidden, weight))
    torch.testing.assert_close(own, expected)
    for a, b in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b)
    assert grads[1][vocab:].abs().sum() == 0


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[2000.0, 0.0], [-2000.0, 0.0]], requires_grad=True)

    own = linear_loss(hidden, weight, labels=torch.tensor([1]), mask=torch.ones(1), rows=VocabularyRows(0, 2, None))

    assert own.item() == pytest.approx(4000.0)
    assert torch.autograd.grad(own, hidden)[0].isfinite().all()


def test_frozen_weight_and_no_grad_are_spared() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    rows = VocabularyRows(0, 5, None)
    labels, mask = torch.tensor([0, 1, 2]), torch.ones(3)

    plain = linear_loss(hidden, weight, labels=labels, mask=mask, rows=rows)
    assert not plain.requires_grad

    hidden.requires_grad_()
    with_grad = linear_loss(hidden, weight, labels=labels, mask=mask, rows=rows)
    (grad,) = torch.autograd.grad(with_grad, hidden)
    assert grad.shape == (3, 4)
    torch.testing.assert_close(plain, with_grad)


@pytest.mark.parametrize(("chunk", "block"), [(1 << 27, 1 << 20), (7 * 11, 11)])
def test_log_probabilities_take_a_weight_for_each_token(
    monkeypatch: pytest.MonkeyPatch, chunk: int, block: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    vocab, padded = 11, 16
    hidden = torch.randn(23, 6, requires_grad=True)
    weight = torch.randn(padded, 6, requires_grad=True)
    labels = torch.randint(vocab, (23,))

    def value(log_probs: torch.Tensor) -> torch.Tensor:
        return -torch.logsumexp(log_probs.view(-1, 23) * torch.linspace(-1, 2, 23), 0).square().sum()

    own = linear_log_probabilities(hidden, weight, labels=labels, rows=VocabularyRows(0, vocab, None))
    grads = torch.autograd.grad(value(own), (hidden, weight))

    expected = -F.cross_entropy(hidden @ weight[:vocab].t(), labels, reduction="none")
    expected_grads = torch.autograd.grad(value(expected), (hidden, weight))
    torch.testing.assert_close(own, expected)
    for a, b in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b)
    assert grads[1][vocab:].abs().sum() == 0


def test_log_probabilities_of_frozen_weights_compute_logits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = module._losses_and_gradient
    monkeypatch.setattr(module, "_losses_and_gradient", lambda *a, **k: calls.append(1) or real(*a, **k))
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)

    own = linear_log_probabilities(hidden, weight, labels=torch.tensor([0, 1, 2]), rows=VocabularyRows(0, 5, None))
    own.sum().backward()

    assert len(calls) == 1 and hidden.grad is not None
    assert not linear_log_probabilities(
        hidden.detach(), weight, labels=torch.tensor([0, 1, 2]), rows=VocabularyRows(0, 5, None)
    ).requires_grad
