"""A sample of the tail: which ids are drawn, their weights, and the losses that use them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import logitcache as lc
from logitcache.errors import TargetsError
from logitcache.losses import metrics
from logitcache.losses.bild import bound
from logitcache.losses.tail import represent_tail
from logitcache.targets.tail_sample import log_weights

V, K, M = 60, 12, 5


def teacher_logits(rows: int = 1, *, scale: float = 2.0, seed: int = 0, vocab: int = V) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def all_draws(logits_V: Tensor, k: int, samples: int, steps: int) -> lc.TopK:
    """One row's targets for every draw on a fine grid: averages over them are expectations."""
    draws_S = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return lc.TopK.from_logits(logits_V.expand(steps, -1), k, tail_samples=samples, draws=draws_S)


def masses(targets: lc.TopK) -> Tensor:
    """``[N, V]``: the weight of every id."""
    found_NV = torch.zeros(len(targets), targets.vocab_size, dtype=torch.float64)
    return found_NV.scatter_(1, targets.ids, represent_tail(targets, 1.0).exp().double())


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.1, 2.0, 12.0, 300.0]),
    k=st.integers(2, 20),
    samples=st.integers(1, 19),
    single=st.booleans(),
    forbidden=st.integers(0, 30),
)
def test_any_sample_is_well_formed(seed: int, scale: float, k: int, samples: int, single: bool, forbidden: int) -> None:
    samples = min(samples, k - 1)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 40, generator=generator, dtype=torch.float32 if single else torch.float64) * scale
    logits[:, :forbidden] = -math.inf
    draws = torch.rand(7, generator=generator, dtype=torch.float64)
    draws[0], draws[1] = 0.0, 1 - 2.0**-53
    before = logits.clone()
    targets = lc.TopK.from_logits(logits, k, tail_samples=samples, draws=draws)
    assert torch.equal(logits, before)
    whole = lc.TopK.from_logits(logits, k)
    assert (targets.k, targets.ranked, targets.tail_samples) == (k, k - samples, samples)
    assert torch.equal(targets.ids[:, : k - samples], whole.ids[:, : k - samples])
    ordered = targets.ids.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    assert (targets.logprobs[:, 1:] <= targets.logprobs[:, :-1]).all()
    torch.testing.assert_close(targets.logprobs, logits.log_softmax(1).gather(1, targets.ids), atol=1e-4, rtol=1e-5)
    total = torch.logaddexp(targets.logprobs.logsumexp(1), targets.residual_logprob)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=2e-4, rtol=0)
    # What the drawn ids stand for adds up to everything outside the ranked ones.
    tail = whole.top(k - samples).residual_logprob
    stood_for = log_weights(targets.logprobs[:, k - samples :], targets.residual_logprob)
    torch.testing.assert_close(stood_for.logsumexp(1).exp(), tail.exp(), atol=1e-6, rtol=1e-4)
    assert (stood_for >= targets.logprobs[:, k - samples :] - 1e-4).all()


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_the_average_weight_of_every_id_is_its_mass(scale: float) -> None:
    logits = teacher_logits(scale=scale)
    found = masses(all_draws(logits[0], K, M, 40_000)).mean(0)
    torch.testing.assert_close(found, logits[0].softmax(0), atol=2e-5, rtol=2e-3)


def test_the_gradient_of_forward_kl_is_that_of_the_full_kl_on_average() -> None:
    logits, student = teacher_logits()[0], teacher_logits(seed=1)[0]
    targets = all_draws(logits, K, M, 20_000)
    rows = student.expand(len(targets), -1).clone().requires_grad_()
    loss = lc.losses.get("forward_kl")
    loss(rows, targets).sum().backward()
    assert rows.grad is not None
    exact = student.softmax(0) - logits.softmax(0)
    torch.testing.assert_close(rows.grad.mean(0), exact, atol=2e-5, rtol=2e-3)
    one_event = student.expand(1, -1).clone().requires_grad_()
    lc.losses.get("residual_kl")(one_event, lc.TopK.from_logits(logits[None], K)).sum().backward()
    assert one_event.grad is not None
    # The cut teacher's gradient isn't: that is what the sample is for.
    assert (one_event.grad[0] - exact).norm() > 100 * (rows.grad.mean(0) - exact).norm()


def test_forward_kl_against_its_definition_and_its_gradient() -> None:
    student, logits = teacher_logits(4, seed=3), teacher_logits(4, seed=4)
    targets = lc.TopK.from_logits(logits, K, tail_samples=M, draws=torch.rand(4, dtype=torch.float64))
    weights = masses(targets)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    expected = (torch.xlogy(weights, weights) - weights * student.log_softmax(1)).sum(1)
    loss = lc.losses.get("forward_kl")
    torch.testing.assert_close(loss(student, targets), expected)
    student.requires_grad_()
    for temperature in (1.0, 2.0):
        tempered = lc.losses.get("forward_kl", temperature=temperature)
        assert torch.autograd.gradcheck(lambda values, tempered=tempered: tempered(values, targets), (student,))
    half = loss(student.detach().bfloat16(), targets)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(student.detach().bfloat16().float(), targets))


def test_at_another_temperature_many_samples_come_near_the_full_kl() -> None:
    student, logits = teacher_logits(1, seed=5, vocab=400), teacher_logits(1, seed=6, vocab=400)
    exact = lc.losses.get("forward_kl", temperature=2.0)(student, lc.TopK.from_logits(logits, 400))
    ways = {
        samples: lc.losses.get("forward_kl", temperature=2.0)(
            student.expand(500, -1), all_draws(logits[0], 8 + samples, samples, 500)
        )
        for samples in (8, 320)
    }
    gaps = {samples: float((values - exact).abs().mean()) for samples, values in ways.items()}
    assert gaps[320] < 0.1 * float(exact)
    assert gaps[320] < gaps[8]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 1.0, 30.0, 3000.0]),
    half=st.booleans(),
    residual=st.sampled_from([None, 0.0, -math.inf, -1e4]),
    impossible=st.integers(0, M),
    name=st.sampled_from(sorted(set(lc.losses.names()) - {"dkd", "normkd", "cross_entropy"})),
)
def test_extreme_inputs_give_finite_losses_and_gradients(
    seed: int, scale: float, half: bool, residual: float | None, impossible: int, name: str
) -> None:
    logits = teacher_logits(3, scale=scale, seed=seed).float()
    draws = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = lc.TopK.from_logits(logits, K, tail_samples=M, draws=draws)
    logprobs = targets.logprobs.clone()
    logprobs[:, K - impossible :] = -math.inf
    level = targets.residual_logprob if residual is None else torch.full((3,), residual)
    targets = replace(targets, logprobs=logprobs, residual_logprob=level)
    student = teacher_logits(3, scale=scale, seed=seed + 1).to(torch.bfloat16 if half else torch.float32)
    student.requires_grad_()
    value = lc.losses.get(name)(student, targets)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if name != "nkd":
        assert (value >= 0).all()


def test_ranked_entries_and_sampled_ones_are_distinguished() -> None:
    targets = lc.TopK.from_logits(teacher_logits(4), K, tail_samples=M, draws=torch.rand(4, dtype=torch.float64))
    student = teacher_logits(4, seed=8)
    ranked = lc.TopK.from_logits(teacher_logits(4), K - M)
    cut = targets.top(K - M)
    assert (cut.k, cut.tail_samples) == (K - M, 0)
    torch.testing.assert_close(cut.residual_logprob, ranked.residual_logprob)
    for name in ("top_kl", "t_ld"):
        loss = lc.losses.get(name, k=K)
        torch.testing.assert_close(loss(student, targets), loss(student, ranked))
    assert torch.equal(metrics.overlap_at_k(student, targets, K), metrics.overlap_at_k(student, ranked, K))
    # What isn't listed lies below the last ranked value, not below the least that was drawn.
    torch.testing.assert_close(bound(targets), bound(replace(ranked, residual_logprob=targets.residual_logprob)))
    with pytest.raises(TargetsError, match=f"only the first {K - M} are the teacher's top; keep all, or at most"):
        targets.top(K - 1)
    assert targets[:2].tail_samples == M
    assert lc.TopK.cat([targets, targets]).tail_samples == M
    with pytest.raises(TargetsError, match="tail samples"):
        lc.TopK.cat([targets, lc.TopK.from_logits(teacher_logits(4), K)])


@pytest.mark.parametrize(("samples", "draws"), [(K, torch.rand(1)), (-1, torch.rand(1)), (2, None), (2, torch.rand(3))])
def test_what_can_not_be_drawn_is_refused(samples: int, draws: Tensor | None) -> None:
    with pytest.raises(TargetsError, match=r"tail_samples|needs draws"):
        lc.TopK.from_logits(teacher_logits(), K, tail_samples=samples, draws=draws)
