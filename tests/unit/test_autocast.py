"""Losses inside ``torch.autocast``: their arithmetic stays in float32, forward and backward."""

import torch
from test_fused_head import case, fused_loss

import logitcache as lc
from logitcache import losses


def test_mixed_dtypes_under_autocast_stay_in_float32() -> None:
    leaves, targets, labels = case()
    expected = fused_loss("bild", leaves, targets, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused_loss("bild", leaves, targets, labels) == expected
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
