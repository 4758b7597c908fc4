"""TopK: the entries that it keeps of a row of logits, and the mass of the others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import logitcache as lc

logit_rows = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5), min_size=1, max_size=8)


@given(rows=logit_rows, k=st.integers(1, 5))
@example(rows=[[0.0, 0.0, 6384.0, 6384.0, -10000.0]], k=5)
@settings(max_examples=200, deadline=None)
def test_top_and_residual_mass_make_one(rows: list[list[float]], k: int) -> None:
    logits_NV = torch.tensor(rows, dtype=torch.float64)
    targets = lc.TopK.from_logits(logits_NV, k)
    total_N = torch.logaddexp(targets.logprobs.logsumexp(1), targets.residual_logprob)
    torch.testing.assert_close(total_N, torch.zeros(len(rows), dtype=torch.float64), atol=1e-12, rtol=0)
    dense_NV = logits_NV.log_softmax(1)
    torch.testing.assert_close(targets.logprobs, dense_NV.gather(1, targets.ids), atol=1e-9, rtol=1e-12)
    assert (targets.logprobs.diff(dim=1) <= 0).all()


def test_residual_of_a_sure_teacher_is_exact() -> None:
    logits_NV = torch.full((1, 1000), -40.0)
    logits_NV[0, 7] = 0.0
    targets = lc.TopK.from_logits(logits_NV, 1)
    assert targets.ids.item() == 7
    # 1 - exp(logprob) would be 0 in float32; the true mass is 999 e^-40.
    assert targets.residual_logprob.item() == pytest.approx(math.log(999) - 40, rel=1e-6)


def test_a_residual_far_below_the_first_entry_is_not_lost() -> None:
    # Gaps of 60 nats: e^-120 vanishes in float32, and must not on the way to its logarithm.
    targets = lc.TopK.from_logits(torch.tensor([[0.0, -60.0, -120.0]]), 2)
    assert targets.residual_logprob.item() == pytest.approx(-120, rel=1e-6)


def test_overwriting_the_logits_changes_nothing_else() -> None:
    logits_NV = torch.randn(4, 50)
    kept = logits_NV.clone()
    plain = lc.TopK.from_logits(logits_NV, 8, statistics=True)
    assert logits_NV.equal(kept)
    torch.testing.assert_close(
        lc.TopK.from_logits(logits_NV, 8, statistics=True, overwrite=True).__dict__, plain.__dict__
    )


def test_ties_are_in_order_of_id() -> None:
    logits_NV = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0]])
    assert lc.TopK.from_logits(logits_NV, 5).ids.tolist() == [[1, 2, 4, 0, 3]]


def test_full_vocabulary_leaves_no_residual() -> None:
    targets = lc.TopK.from_logits(torch.randn(3, 9), 9)
    assert targets.is_full
    assert targets.residual_logprob.eq(-math.inf).all()


def test_masked_logits_keep_minus_infinity() -> None:
    targets = lc.TopK.from_logits(torch.tensor([[0.0, -math.inf, 0.0]]), 3)
    assert targets.logprobs[0].tolist() == pytest.approx([-math.log(2), -math.log(2), -math.inf])


def test_statistics_restore_raw_logits() -> None:
    logits_NV = torch.randn(4, 50, dtype=torch.float64)
    targets = lc.TopK.from_logits(logits_NV, 8, statistics=True)
    assert targets.log_partition is not None
    assert targets.logit_std is not None
    back_NK = targets.logprobs + targets.log_partition[:, None]
    torch.testing.assert_close(back_NK, logits_NV.gather(1, targets.ids))
    torch.testing.assert_close(targets.logit_std, logits_NV.std(1))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits_NV = torch.randn(4, 50).to(torch.bfloat16)
    targets = lc.TopK.from_logits(logits_NV, 8)
    wide = lc.TopK.from_logits(logits_NV.float(), 8)
    assert targets.logprobs.dtype == torch.float32
    torch.testing.assert_close(targets.logprobs, wide.logprobs)


def test_fewer_entries_move_their_mass_to_the_residual() -> None:
    logits_NV = torch.randn(6, 40, dtype=torch.float64)
    cut, fresh = lc.TopK.from_logits(logits_NV, 16).top(4), lc.TopK.from_logits(logits_NV, 4)
    torch.testing.assert_close(cut.residual_logprob, fresh.residual_logprob)
    assert cut.ids.equal(fresh.ids)


def test_select_and_join_are_inverse() -> None:
    targets = lc.TopK.from_logits(torch.randn(6, 40), 4, statistics=True)
    joined = lc.TopK.cat([targets[:2], targets[2:]])
    assert joined.ids.equal(targets.ids)
    assert joined.logit_std is not None
    assert targets.logit_std is not None
    assert joined.logit_std.equal(targets.logit_std)


@pytest.mark.parametrize("k", [0, 11])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(lc.LogitCacheError, match=f"top-k {k} must be from 1 to the vocabulary's 10"):
        lc.TopK.from_logits(torch.randn(2, 10), k)


def test_shapes_that_do_not_fit_are_refused() -> None:
    ids_NK, logprobs_NK = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4)
    with pytest.raises(lc.LogitCacheError, match="must both be"):
        lc.TopK(ids_NK, logprobs_NK, torch.zeros(2), 10)
    with pytest.raises(lc.LogitCacheError, match="residual_logprob"):
        lc.TopK(ids_NK, torch.zeros(2, 3), torch.zeros(3), 10)
    with pytest.raises(lc.LogitCacheError, match="int64"):
        lc.TopK(ids_NK.int(), torch.zeros(2, 3), torch.zeros(2), 10)


def test_candidates_may_be_far_below_the_largest_id_that_is_left_out() -> None:
    """Ids that are masked with a low number may be candidates; the least listed value isn't the bound then."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([torch.randn(3, 6, generator=generator), torch.full((3, 44), -1e4)], 1)
    liked = torch.arange(50.0).expand(3, -1)
    targets = lc.TopK.from_logits(logits, 8, candidates=4, reference=liked)
    exact = lc.TopK.from_logits(logits.double(), 8, candidates=4, reference=liked)
    assert targets.logprobs.isfinite().all()
    torch.testing.assert_close(targets.logprobs, exact.logprobs.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(targets.residual_logprob, exact.residual_logprob.float(), rtol=1e-6, atol=1e-6)
    left = logits.log_softmax(1).scatter(1, targets.ids, -torch.inf).logsumexp(1)
    torch.testing.assert_close(targets.residual_logprob, left, rtol=1e-5, atol=1e-5)


def test_a_tail_hundreds_of_nats_lower_keeps_its_mass() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 200, generator=generator)
    logits[:, :8] += torch.tensor([[110.0], [900.0]])
    targets = lc.TopK.from_logits(logits, 8, statistics=True)
    exact = lc.TopK.from_logits(logits.double(), 8, statistics=True)
    torch.testing.assert_close(targets.residual_logprob, exact.residual_logprob.float(), rtol=1e-6, atol=1e-5)
    assert targets.log_partition is not None
    assert exact.log_partition is not None
    torch.testing.assert_close(targets.log_partition, exact.log_partition.float(), rtol=1e-6, atol=1e-5)
