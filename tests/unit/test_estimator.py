"""Estimates of the teacher values that targets don't hold."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import logitcache as lc
from logitcache import losses
from logitcache.losses import bild

RANK, VOCAB, K = 6, 200, 24


def teacher_logits(rows: int, seed: int) -> torch.Tensor:
    """Logits of a low-rank teacher with its own habits."""
    shared = torch.Generator().manual_seed(0)
    factor, mean = torch.randn(VOCAB, RANK, generator=shared) * 1.5, torch.randn(VOCAB, generator=shared)
    own = torch.Generator().manual_seed(seed)
    states, levels = torch.randn(rows, RANK, generator=own), torch.randn(rows, 1, generator=own) * 5
    return states @ factor.T + mean + levels + torch.randn(rows, VOCAB, generator=own) * 0.3


@pytest.fixture(scope="module")
def estimator() -> losses.Estimator:
    return losses.Estimator.fit(teacher_logits(300, seed=1).split(100), rank=RANK)


def test_missing_values_of_a_low_rank_teacher_are_recovered(estimator: losses.Estimator) -> None:
    logits = teacher_logits(40, seed=2)
    targets = lc.TopK.from_logits(logits, K)
    unlisted = logits.log_softmax(1).scatter(1, targets.ids, torch.inf).sort(1, descending=True).indices[:, K:]
    truth = logits.log_softmax(1).gather(1, unlisted)
    error = (estimator.predict(targets, unlisted) - truth).square().mean().sqrt()
    assert error < 0.25 * truth.std()
    assert (truth - truth.mean(1, keepdim=True)).std() > 2


def test_estimates_of_a_high_rank_are_those_of_the_rows_one_by_one() -> None:
    """Many rows at once, several threads, 181 unknowns: where a batched LU gives noise or NaN."""
    high = losses.Estimator.fit([torch.randn(400, VOCAB, generator=torch.Generator().manual_seed(7))], rank=180)
    targets = lc.TopK.from_logits(teacher_logits(400, seed=8), K)
    asked = torch.arange(8).expand(400, -1)
    together = high.predict(targets, asked)
    for row in range(0, 400, 57):
        ids = targets.ids[row]
        factor_KR1, asked_CR1 = (
            torch.cat([high.factor_VR[some], torch.ones(len(some), 1)], 1).double() for some in (ids, asked[row])
        )
        prior_R1R1 = torch.diag(torch.cat([torch.ones(180), torch.tensor([1e4])])).double()
        covariance_KK = factor_KR1 @ prior_R1R1 @ factor_KR1.T + torch.diag(high.noise_V[ids].double())
        surprise_K = (targets.logprobs[row] - high.mean_V[ids]).double()
        weights_CK = asked_CR1 @ prior_R1R1 @ factor_KR1.T
        expected = high.mean_V[asked[row]] + weights_CK @ torch.linalg.solve(covariance_KK, surprise_K)
        torch.testing.assert_close(together[row].double(), expected, rtol=1e-3, atol=1e-2)


def test_the_gradient_of_s_ld_comes_closer_to_the_exact_one(estimator: losses.Estimator) -> None:
    logits = teacher_logits(60, seed=3)
    student = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(4)) * 2.5
    full, targets = lc.TopK.from_logits(logits, VOCAB), lc.TopK.from_logits(logits, K)

    def gradient(loss: losses.Loss, which: lc.TopK) -> torch.Tensor:
        leaf = student.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, which).sum(), leaf)[0].flatten()

    exact = gradient(losses.get("s_ld"), full)
    plain, estimated = (
        torch.cosine_similarity(exact, gradient(loss, targets), dim=0)
        for loss in (losses.get("s_ld"), losses.get("s_ld", estimator=estimator))
    )
    assert losses.metrics.s_ld_coverage(student, targets).mean() < 0.85
    assert 1 - estimated < 0.75 * (1 - plain)
    torch.testing.assert_close(gradient(losses.get("s_ld", estimator=estimator), full), exact)


def test_an_estimate_has_more_weight_if_more_of_a_row_is_missing(estimator: losses.Estimator) -> None:
    """The values for missing ones, against their formula, on rows that lack from one to all of the student's ids."""
    logits = teacher_logits(8, seed=6)
    targets = lc.TopK.from_logits(logits, K)
    order = logits.argsort(1, descending=True)
    # Row r asks for 7 - r listed ids and r + 1 that aren't, one of them the least probable of all.
    ids = torch.stack([torch.cat([order[r, : 7 - r], order[r, VOCAB - 1 - r :]]) for r in range(8)])
    known = (ids[:, :, None] == targets.ids[:, None, :]).any(2)
    bound = torch.minimum(targets.logprobs[:, -1], targets.residual_logprob)[:, None]
    share = torch.arange(1, 9)[:, None] / 8
    below = (bound - estimator.predict(targets, ids)).clamp_min(0)
    expected = bound - 0.5 - 0.75 * 2.0 * share - (0.2 + 0.6 * share) * below
    loss = losses.get("s_ld", estimator=estimator, offset=0.5, slope=2.0)
    assert isinstance(loss, bild.SLD)
    torch.testing.assert_close(loss.fill(targets, ids, known), expected)
    assert (below[:, -1] > 1).all()


def test_saved_and_named_in_a_line_of_text(estimator: losses.Estimator, tmp_path: Path) -> None:
    size = estimator.save(tmp_path / "teacher.safetensors")
    assert 2 * (RANK + 2) * VOCAB < size < 2 * (RANK + 2) * VOCAB + 500
    logits = teacher_logits(5, seed=5)
    targets = lc.TopK.from_logits(logits, K)
    by_name = losses.parse(f"bild(estimator={tmp_path / 'teacher.safetensors'})=1.0")
    by_value = losses.get("bild", estimator=estimator)
    torch.testing.assert_close(by_name(-logits, targets), by_value(-logits, targets), rtol=1e-2, atol=1e-3)
    hidden, weight = logits[:, :8].clone().requires_grad_(), torch.randn(VOCAB, 8).requires_grad_()
    fused = losses.linear_loss(by_value, hidden, weight, targets)
    torch.testing.assert_close(fused, by_value(hidden @ weight.T, targets).mean())
    fused.backward()
    assert hidden.grad is not None


def test_a_file_that_is_not_an_estimator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"nothing of the kind")
    with pytest.raises(lc.LogitCacheError, match="is no estimator file"):
        losses.get("bild", estimator=str(tmp_path / "other"))
    with pytest.raises(lc.LogitCacheError, match="is no estimator file"):
        losses.Estimator.load(tmp_path / "missing")
    good = {"mean": torch.zeros(9), "factor": torch.zeros(9, 2), "noise": torch.ones(9)}
    for name, wrong in (("noise", torch.zeros(9)), ("mean", torch.full((9,), math.nan)), ("factor", torch.zeros(8, 2))):
        save_file({**good, name: wrong}, tmp_path / "wrong")
        with pytest.raises(lc.LogitCacheError, match="is no estimator file: "):
            losses.Estimator.load(tmp_path / "wrong")
    with pytest.raises(lc.LogitCacheError, match="needs more than 64 audit rows"):
        losses.Estimator.fit([teacher_logits(40, seed=1)], rank=64)


def test_an_estimator_is_learnt_from_repeated_rows() -> None:
    """Rows repeat, for example, if prompts are made from a template."""
    rows = teacher_logits(20, seed=9)
    repeated = losses.Estimator.fit([rows.repeat(4, 1)], rank=64)
    once = losses.Estimator.fit([rows], rank=19)
    targets = lc.TopK.from_logits(teacher_logits(10, seed=10), K)
    ids = torch.arange(8).expand(10, -1)
    torch.testing.assert_close(repeated.predict(targets, ids), once.predict(targets, ids), rtol=1e-3, atol=5e-3)


def test_rows_that_an_estimator_can_not_be_learnt_from_are_refused() -> None:
    rows = teacher_logits(100, seed=11)
    for broken in (math.nan, math.inf):
        with pytest.raises(lc.LogitCacheError, match="hold NaN"):
            losses.Estimator.fit([rows, torch.full((1, VOCAB), broken)], rank=RANK)
    for parts in ([], [rows[0]], [rows, rows[:, 1:]]):
        with pytest.raises(lc.LogitCacheError, match=r"must be \[A, V\]"):
            losses.Estimator.fit(parts, rank=RANK)


def test_ids_that_only_the_student_has_take_the_plain_bound(estimator: losses.Estimator) -> None:
    targets = lc.TopK.from_logits(teacher_logits(5, seed=13), K)
    padded = torch.cat([teacher_logits(5, seed=14), torch.full((5, 8), 99.0)], 1)
    estimated, plain = losses.get("s_ld", estimator=estimator), losses.get("s_ld", slope=2.4 * 0.75)
    # Its eight favourites are all padding, of which nothing is known.
    torch.testing.assert_close(estimated(padded, targets), plain(padded, targets))


def test_an_estimator_of_another_vocabulary_is_refused(estimator: losses.Estimator) -> None:
    other = lc.TopK.from_logits(torch.randn(5, VOCAB + 1), K)
    with pytest.raises(lc.LogitCacheError, match=f"has {VOCAB} ids, but the targets have {VOCAB + 1}"):
        losses.get("bild", estimator=estimator)(torch.randn(5, VOCAB + 1), other)
    with pytest.raises(lc.LogitCacheError, match="estimator = 7 is not allowed"):
        losses.parse("bild(estimator=7)")


def test_entries_of_minus_infinity_give_finite_estimates(estimator: losses.Estimator) -> None:
    logits = teacher_logits(4, seed=6)
    logits[:, 20:] = -torch.inf
    targets = lc.TopK.from_logits(logits, K)
    assert estimator.predict(targets, targets.ids).isfinite().all()
    loss = losses.get("bild", estimator=estimator)(teacher_logits(4, seed=7), targets)
    assert loss.isfinite().all()
