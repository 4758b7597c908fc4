"""s-LD from a cache: when it is exact, and which values it uses for missing teacher values."""

from dataclasses import replace

import torch
from loss_cases import random_case

import logitcache as lc
from logitcache import losses
from logitcache.losses import metrics


def test_s_ld_is_exact_where_the_targets_hold_the_students_ids() -> None:
    student, full, _ = random_case(n=40, v=60, k=60)
    truncated = full.top(52)
    covered = metrics.s_ld_coverage(student, truncated) == 1
    assert 0 < covered.sum() < 40
    exact, ours = losses.get("s_ld")(student, full), losses.get("s_ld")(student, truncated)
    torch.testing.assert_close(ours[covered], exact[covered])
    assert (ours[~covered] != exact[~covered]).all()


def test_the_value_for_a_missing_one_is_below_its_bound() -> None:
    student = torch.tensor([[5.0, 4.0, 3.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[5.0, 0.0, 0.0, 4.0, 3.0, 0.0]], dtype=torch.float64)
    targets = lc.TopK.from_logits(teacher, 3)
    filled = torch.minimum(targets.logprobs[:, 2], targets.residual_logprob) - 0.5 - 1.2 * 2 / 3
    values = torch.cat([targets.logprobs[:, :1], filled[:, None], filled[:, None]], 1)
    rows = torch.tensor([[0, 0, 1]]), torch.tensor([[1, 2, 2]])
    p = ((values[0, rows[0]] - values[0, rows[1]]) / 3).log_softmax(1)
    q = ((student[0, rows[0]] - student[0, rows[1]]) / 3).log_softmax(1)
    expected = (p.exp() * (p - q)).sum(1)
    torch.testing.assert_close(losses.get("s_ld", k=3, offset=0.5, slope=1.2)(student, targets), expected)


def test_pairs_with_a_missing_value_can_be_left_out() -> None:
    student, full, _ = random_case(n=40, v=60, k=60)
    loss = losses.get("s_ld", missing="drop")
    torch.testing.assert_close(loss(student, full), losses.get("s_ld")(student, full))
    none_known = lc.TopK.from_logits(torch.tensor([[0.0, 0.0, 9.0]]), 1)
    logits = torch.tensor([[3.0, 2.0, -9.0]], requires_grad=True)
    value = losses.get("s_ld", k=2, missing="drop")(logits, none_known)
    value.sum().backward()
    assert value == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_candidates_of_a_reference_student_make_s_ld_exact_for_it() -> None:
    generator = torch.Generator().manual_seed(5)
    teacher, student = (torch.randn(30, 400, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    targets, full = lc.TopK.from_logits(teacher, 16), lc.TopK.from_logits(teacher, 400)
    more = lc.TopK.from_logits(teacher, 24, candidates=8, reference=student)
    assert (more.k, more.ranked) == (24, 16)
    torch.testing.assert_close(more.logprobs[:, :16], targets.logprobs)
    assert (more.logprobs.diff(dim=1) <= 0).all()
    total = torch.cat([more.logprobs, more.residual_logprob[:, None]], 1).logsumexp(1)
    torch.testing.assert_close(total, torch.zeros_like(total))
    assert metrics.s_ld_coverage(student, targets).mean() < 0.3
    assert metrics.s_ld_coverage(student, more).mean() == 1
    loss = losses.get("s_ld")
    torch.testing.assert_close(loss(student, more), loss(student, full))
    # For another student the bound still is the 16th value, not that of the least candidate.
    other = torch.randn(30, 400, generator=generator, dtype=torch.float64) * 2
    assert (loss(other, more) - loss(other, replace(more, candidates=0))).abs().mean() > 1e-3
