"""Losses inside ``torch.autocast``: their arithmetic stays in float32, forward and backward."""

import pytest
import torch
from test_fused_head import case, fused_loss

import logitcache as lc
from logitcache import losses
from logitcache.losses import fused


@pytest.mark.parametrize("loss", ["bild", "residual_kl", "bild=1.0,cross_entropy=0.1"])
def test_autocast_rounds_what_the_head_multiplies_and_nothing_else(loss: str) -> None:
    leaves, targets, labels = case()
    rounded = {
        name: (value if name == "bias" else value.bfloat16().float()).detach().requires_grad_()
        for name, value in leaves.items()
    }
    expected = fused_loss(loss, rounded, targets, labels)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        value = fused_loss(loss, leaves, targets, labels)
    value.backward()
    assert value == expected
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        # Not bfloat16, whose step is 2^-8: the gradients are float32 sums.
        torch.testing.assert_close(leaf.grad, rounded[name].grad, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "tvd"])
def test_small_gradients_are_kept_where_a_device_multiplies_float16(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over many positions makes most gradients smaller than float16's least number."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5000, 16, generator=generator)
    targets = lc.TopK.from_logits(torch.randn(256, 5000, generator=generator) * 3, 16)

    def gradients() -> list[torch.Tensor]:
        generator.manual_seed(1)
        leaves = [(torch.randn(256, 16, generator=generator) / 10).requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", torch.float16):
            value = losses.linear_loss(loss, *leaves, targets)
        return list(torch.autograd.grad(value, leaves))

    expected = gradients()
    # As a GPU does; the CPU has no such product.
    monkeypatch.setattr(fused, "gradient_operand", lambda gradient, dtype: gradient.to(dtype).float())
    for found, wanted in zip(gradients(), expected, strict=True):
        assert (found - wanted).norm() < 2e-3 * wanted.norm()


def test_mixed_dtypes_keep_their_own() -> None:
    leaves, targets, labels = case()
    mixed = {"hidden": leaves["hidden"].detach().bfloat16().requires_grad_(), "weight": leaves["weight"]}
    fused_loss("bild", mixed, targets, labels).backward()
    assert mixed["hidden"].grad is not None
    assert mixed["hidden"].grad.dtype == torch.bfloat16


def test_a_backward_pass_inside_autocast_is_the_same() -> None:
    """Half-precision weights, whose gathered rows meet a float32 gradient."""
    leaves, targets, labels = case()

    def gradient(*, inside: bool) -> torch.Tensor:
        halves = {name: value.detach().bfloat16().requires_grad_() for name, value in leaves.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            fused_loss("bild", halves, targets, labels).backward()
        assert halves["hidden"].grad is not None
        return halves["hidden"].grad

    assert torch.equal(gradient(inside=True), gradient(inside=False))


def test_an_estimator_inside_autocast_is_the_same() -> None:
    rows = torch.randn(300, 60, generator=torch.Generator().manual_seed(0)) @ torch.randn(60, 400) + torch.randn(400)
    estimator, targets = losses.Estimator.fit([rows], rank=64), lc.TopK.from_logits(rows[:8], 8)
    ids = torch.arange(8).expand(8, -1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = estimator.predict(targets, ids)
    assert torch.equal(inside, estimator.predict(targets, ids))
