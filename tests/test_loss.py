"""Label-only cross-entropy against the ordinary one, and its memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from gistselect.model import loss
from gistselect.model.loss import OutputHead, supervised_cross_entropy

HIDDEN, VOCABULARY = 16, 500


def head(scale: float = 1.0, softcap: float | None = None, bias: bool = False) -> OutputHead:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    return OutputHead(weight=weight, bias=weight[:, 0] if bias else None, scale=scale, softcap=softcap)


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, HIDDEN, generator=generator).requires_grad_(True)
    return hidden, torch.randint(0, VOCABULARY, (n,), generator=generator)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize(
    ("scale", "softcap", "bias"), [(1, None, False), (0.25, None, True), (1, 5.0, False), (2, 3.0, True)]
)
@pytest.mark.parametrize(("block_bytes", "block_words"), [(1, 1000), (1, 37), (70_000, 400), (1 << 30, 7)])
def test_loss_and_gradient_equal_the_ordinary_ones(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, block_words: int, scale: float, softcap: float | None, bias: bool
) -> None:
    monkeypatch.setitem(loss.BLOCK_BYTES, "cpu", block_bytes)
    monkeypatch.setitem(loss.BLOCK_WORDS, "cpu", block_words)
    output = head(scale, softcap, bias)
    hidden, labels = inputs(101)
    weights = torch.rand(101, generator=torch.Generator().manual_seed(2))
    losses = supervised_cross_entropy(hidden, labels, output)
    (losses * weights).sum().backward()
    found, hidden.grad = hidden.grad, None

    logits = scale * torch.nn.functional.linear(hidden, output.weight, output.bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = cross_entropy(logits, labels, reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-5, atol=1e-5)


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, words, output = 8, 100, head()
    monkeypatch.setitem(loss.BLOCK_BYTES, "cpu", rows * words * 4)
    monkeypatch.setitem(loss.BLOCK_WORDS, "cpu", words)
    for n in (100, 3000):
        hidden, labels = inputs(n)
        with LargestTensor() as largest:
            supervised_cross_entropy(hidden, labels, output).sum().backward()
        assert largest.elements <= max(output.weight.numel(), n * HIDDEN)
    with LargestTensor() as largest:
        cross_entropy(hidden @ output.weight.T, labels).backward()
    assert largest.elements == n * VOCABULARY


def test_bfloat16_losses_are_kept_in_float32() -> None:
    output = head()
    hidden, labels = inputs(50)
    narrow = OutputHead(weight=output.weight.bfloat16(), bias=None, scale=1, softcap=None)
    losses = supervised_cross_entropy(hidden.bfloat16(), labels, narrow)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, supervised_cross_entropy(hidden, labels, output), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("sureness", [0.2, 0.6, 1.0])
def test_the_gradient_of_a_sure_prediction_is_no_rounding_noise(
    monkeypatch: pytest.MonkeyPatch, sureness: float
) -> None:
    """Where p is nearly 1, p·w - w of bfloat16 numbers would keep few digits, or none."""
    monkeypatch.setitem(loss.BLOCK_WORDS, "cpu", 64)
    output = head()
    narrow = OutputHead(weight=output.weight.bfloat16(), bias=None, scale=1, softcap=None)
    labels = inputs(50)[1]
    hidden = (sureness * narrow.weight[labels]).requires_grad_(True)
    supervised_cross_entropy(hidden, labels, narrow).sum().backward()
    exact = hidden.detach().double().requires_grad_(True)
    cross_entropy(exact @ narrow.weight.double().T, labels, reduction="sum").backward()
    lengths = torch.linalg.vector_norm(exact.grad, dim=1)
    error = torch.linalg.vector_norm(hidden.grad.double() - exact.grad, dim=1)
    assert lengths.min() > 1e-12
    assert (error < 0.1 * lengths).all()


def test_logits_of_any_size_give_finite_losses() -> None:
    hidden, labels = inputs(20)
    scaled = (1e4 * hidden.detach()).requires_grad_(True)
    losses = supervised_cross_entropy(scaled, labels, head())
    losses.sum().backward()
    torch.testing.assert_close(losses, cross_entropy(scaled @ head().weight.T, labels, reduction="none"))
    assert scaled.grad.isfinite().all()


def test_without_gradient_only_the_loss_is_formed() -> None:
    hidden, labels = inputs(10)
    with torch.no_grad():
        losses = supervised_cross_entropy(hidden, labels, head())
    assert not losses.requires_grad
    torch.testing.assert_close(losses, cross_entropy(hidden @ head().weight.T, labels, reduction="none"))
