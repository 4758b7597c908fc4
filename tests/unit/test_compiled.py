"""Losses and the fused head inside ``torch.compile``."""

import warnings

import pytest
import torch
from test_fused_head import case
from torch import Tensor

from logitcache import losses


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", message=".*shape of the teacher's tail.*")


@pytest.mark.parametrize("spec", ["bild", "forward_kl", "bild=1.0,cross_entropy=0.1"])
def test_compiled_code_around_it_gives_the_same(spec: str) -> None:
    leaves, targets, labels = case()
    labels[::4] = -100
    loss = losses.parse(spec)

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return losses.linear_loss(loss, torch.tanh(hidden) * 2, weight, targets, labels=labels)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager")
    plain, again = step(**leaves), compiled(**leaves)
    assert torch.equal(plain, again)
    for ours, theirs in zip(
        torch.autograd.grad(plain, list(leaves.values())),
        torch.autograd.grad(again, list(leaves.values())),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("name", losses.names())
def test_losses_compile(name: str) -> None:
    """A loss called on logits within compiled code."""
    leaves, targets, labels = case(k=300)
    loss = losses.get(name)
    logits = (leaves["hidden"] @ leaves["weight"].T).detach().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: loss(values, targets, labels).mean(), backend="aot_eager")
    plain, again = loss(logits, targets, labels).mean(), compiled(logits)
    assert torch.allclose(plain, again, atol=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(plain, logits), torch.autograd.grad(again, logits)
    assert torch.allclose(ours, theirs, atol=1e-7)
