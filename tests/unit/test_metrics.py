"""The metrics against their definitions, and the student's top against sorting."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import random_case
from torch.nn import functional

from logitcache.losses import metrics
from logitcache.targets.largest import largest_ids


def test_metrics_against_their_definitions() -> None:
    student, full, labels = random_case(n=30, v=50, k=50)
    targets = full.top(12)
    top = student.topk(8, 1).indices
    overlap = [
        len(set(mine.tolist()) & set(theirs[:8].tolist())) / 8 for mine, theirs in zip(top, full.ids, strict=True)
    ]
    covered = [
        len(set(mine.tolist()) & set(theirs[:12].tolist())) / 8 for mine, theirs in zip(top, full.ids, strict=True)
    ]
    torch.testing.assert_close(metrics.overlap_at_k(student, targets), torch.tensor(overlap))
    torch.testing.assert_close(metrics.s_ld_coverage(student, targets), torch.tensor(covered))
    agreement = (student.argmax(1) == full.ids[:, 0]).float()
    torch.testing.assert_close(metrics.top1_agreement(student, targets), agreement)
    entropy = metrics.cross_entropy(student, labels)
    assert entropy[1].isnan()
    keep = labels != -100
    torch.testing.assert_close(entropy[keep].mean(), functional.cross_entropy(student, labels))


@settings(max_examples=60, deadline=None)
@given(v=st.integers(2, 3000), k=st.integers(1, 9), seed=st.integers(0, 99), ties=st.booleans())
def test_the_students_top_is_found_as_sorting_finds_it(v: int, k: int, seed: int, ties: bool) -> None:
    logits = torch.randn(3, v, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    k = min(k, v)
    ids = largest_ids(logits, k)
    torch.testing.assert_close(logits.gather(1, ids), logits.topk(k, 1).values)
    assert all(len(set(row.tolist())) == k for row in ids)


def test_coverage_advice_names_a_k_to_dump() -> None:
    assert metrics.coverage_advice(0.95, 64) is None
    assert "--top-k 128" in (metrics.coverage_advice(0.86, 64) or "")
    assert "--top-k 512" in (metrics.coverage_advice(0.3, 64) or "")


def test_coverage_advice_names_audit_rows_until_they_are_in_use() -> None:
    assert "--audit" in (metrics.coverage_advice(0.5, 64) or "")
    assert "--audit" not in (metrics.coverage_advice(0.5, 64, audited=True) or "--audit")
