"""s-LD's fidelity, measured on audit rows."""

from __future__ import annotations

import pytest
import torch

import logitcache as lc
from logitcache.errors import TargetsError
from logitcache.losses import bild, fidelity


def pair(rows: int = 40, vocab: int = 300, noise: float = 1.0) -> tuple[torch.Tensor, lc.TopK]:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(rows, vocab, generator=generator) * 3
    student = teacher + torch.randn(rows, vocab, generator=generator) * noise
    return student, lc.TopK.from_logits(teacher, vocab)


def sld(**settings: object) -> bild.SLD:
    loss = lc.losses.get("s_ld", **settings)
    assert isinstance(loss, bild.SLD)
    return loss


def test_full_targets_match_exactly() -> None:
    student, full = pair()
    match = fidelity.s_ld_match(sld(), student, full, full.vocab_size)
    assert match.cosine == pytest.approx(1)
    assert match.mean_cosine == pytest.approx(1)
    assert match.rows == 40


def test_match_is_the_cosine_of_whole_gradients() -> None:
    """Against gradients with respect to all logits, taken through the public loss."""
    student, full = pair(noise=2)
    gradients = []
    for targets in (full.top(16), full):
        logits = student.clone().requires_grad_()
        gradients.append(torch.autograd.grad(sld()(logits, targets).sum(), logits)[0].double())
    ours, exact = gradients
    match = fidelity.s_ld_match(sld(), student, full, 16)
    assert match.cosine == pytest.approx(float((ours * exact).sum() / ours.norm() / exact.norm()), abs=1e-6)
    each = torch.nn.functional.cosine_similarity(ours, exact, dim=1)
    assert match.mean_cosine == pytest.approx(float(each.mean()), abs=1e-6)


def test_parts_add_up() -> None:
    student, full = pair(noise=2)
    whole = fidelity.s_ld_match(sld(), student, full, 16)
    parts = fidelity.total(fidelity.s_ld_match(sld(), student[s], full[s], 16) for s in (slice(15), slice(15, 40)))
    assert parts.cosine == pytest.approx(whole.cosine)
    assert parts.rows == whole.rows


def test_best_fill_is_at_least_as_good_as_the_settings_it_starts_with() -> None:
    student, full = pair(noise=2)
    start = sld(offset=5, slope=0)
    found, match = fidelity.best_fill(start, [(student[:20], full[:20]), (student[20:], full[20:])], 16)
    assert found != start
    assert match.cosine > fidelity.s_ld_match(start, student, full, 16).cosine
    assert match.cosine == pytest.approx(fidelity.s_ld_match(found, student, full, 16).cosine)


def test_an_estimator_is_tried_and_kept_if_it_is_better() -> None:
    generator = torch.Generator().manual_seed(5)
    factor, mean = torch.randn(8, 400, generator=generator) * 2, torch.randn(400, generator=generator)
    teacher = torch.randn(300, 8, generator=generator) @ factor + mean
    student = teacher + torch.randn(300, 400, generator=generator) * 4
    estimator = lc.losses.Estimator.fit([teacher[:200]], rank=8)
    rows = [(student[200:], lc.TopK.from_logits(teacher[200:], 400))]
    found, match = fidelity.best_fill(sld(), rows, 32, estimator)
    assert found.estimator is estimator
    assert match.cosine > fidelity.s_ld_match(sld(), *rows[0], 32).cosine


def test_fill_reaches_the_student_led_part_only() -> None:
    mixed = lc.losses.parse("bild=1.0,residual_kl=0.5")
    led = fidelity.student_led(mixed)
    assert led == lc.losses.get("bild")
    assert fidelity.student_led(lc.losses.get("residual_kl")) is None
    changed = fidelity.with_fill(mixed, sld(offset=2, slope=0))
    assert isinstance(changed, lc.losses.Mix)
    assert changed.parts == ((1.0, lc.losses.get("bild", offset=2, slope=0)), (0.5, lc.losses.get("residual_kl")))


def test_truncated_audit_rows_are_refused() -> None:
    student, full = pair()
    with pytest.raises(TargetsError, match="must list all 300 ids"):
        fidelity.s_ld_match(sld(), student, full.top(64), 16)
