"""Input with NaN or infinity, or that doesn't fit, gives NaN or one clear error."""

import math
import warnings

import pytest
import torch
from loss_cases import random_case

import logitcache as lc
from logitcache import losses

#: Reads nothing of the teacher.
PLAIN = "cross_entropy"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", message=".*shape of the teacher's tail.*")


@pytest.mark.parametrize("k", [12, 40])
@pytest.mark.parametrize("name", losses.names())
def test_a_student_of_nan_has_a_loss_of_nan(name: str, k: int) -> None:
    """A loss of 0 would look like a perfect student."""
    student, targets, labels = random_case(k=k, dtype=torch.float32)
    hidden, weight = torch.randn(6, 4), torch.randn(40, 4)
    hidden[3] = math.nan
    dense = losses.get(name)(torch.where(torch.arange(6)[:, None] == 3, math.nan, student), targets, labels)
    assert dense.isnan().tolist() == [row == 3 for row in range(6)]
    assert losses.linear_loss(name, hidden, weight, targets, labels=labels).isnan()


@pytest.mark.parametrize("name", [name for name in losses.names() if name != PLAIN])
def test_a_teacher_of_nan_has_a_loss_of_nan(name: str) -> None:
    student, targets, labels = random_case(k=12, dtype=torch.float32)
    broken = torch.arange(6)[:, None] == 3
    targets = lc.TopK(
        targets.ids, torch.where(broken, math.nan, targets.logprobs), targets.residual_logprob, 40,
        logit_std=targets.logit_std,
    )  # fmt: skip
    assert losses.get(name)(student, targets, labels).isnan().tolist() == [row == 3 for row in range(6)]


@pytest.mark.parametrize("name", [name for name in losses.names() if name != PLAIN])
def test_a_teacher_of_minus_infinity_gives_finite_losses(name: str) -> None:
    """All its mass is outside of the listed ids."""
    student, targets, labels = random_case(k=12, dtype=torch.float32)
    nothing = torch.full_like(targets.logprobs, -math.inf)
    targets = lc.TopK(targets.ids, nothing, torch.zeros(6), 40, logit_std=targets.logit_std)
    student.requires_grad_()
    values = losses.get(name)(student, targets, labels)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


def test_a_divergence_that_is_infinite_stays_so() -> None:
    targets = lc.TopK.from_logits(torch.zeros(1, 3), 3)
    assert losses.get("forward_kl")(torch.tensor([[0.0, 0.0, -math.inf]]), targets).tolist() == [math.inf]


@pytest.mark.parametrize("name", ["cross_entropy", "dkd", "bild=1.0,cross_entropy=0.1"])
def test_labels_that_are_no_ids_are_named(name: str) -> None:
    student, targets, labels = random_case(k=40, dtype=torch.float32)
    loss = losses.parse(name)
    for wrong in (40, -1, -99):
        with pytest.raises(lc.LogitCacheError, match=f"label {wrong} is none of the student's 40 ids"):
            loss(student, targets, torch.full((6,), wrong))
        with pytest.raises(lc.LogitCacheError, match=f"label {wrong} is none of the student's 40 ids"):
            losses.linear_loss(loss, torch.randn(6, 4), torch.randn(40, 4), targets, labels=torch.full((6,), wrong))
    with pytest.raises(lc.LogitCacheError, match=r"labels torch.int32 \(6,\) must be torch.int64"):
        loss(student, targets, labels.int())


def test_labels_that_no_loss_reads_are_not_checked() -> None:
    student, targets, _ = random_case(k=12, dtype=torch.float32)
    assert losses.get("bild")(student, targets, torch.full((6,), 10**6)).isfinite().all()


def test_a_student_with_the_listed_ids_alone_compares_those() -> None:
    """The teacher has more ids, which this student can't follow; nothing may go negative for it."""
    teacher = torch.tensor([[3.0, 2.9, 2.8, 2.7, 2.6, 2.6, 2.6, 2.6]], dtype=torch.float64)
    targets = lc.TopK.from_logits(teacher, 4)
    student = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kl, forward = (losses.get(name)(student, targets) for name in ("residual_kl", "forward_kl"))
    assert kl > 0.05
    torch.testing.assert_close(kl, forward)
    ours, theirs = (torch.autograd.grad(value.sum(), student)[0] for value in (kl, forward))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["normkd", "dkd"])
def test_logits_far_from_zero_keep_their_gradient(name: str) -> None:
    student, targets, labels = random_case(k=40, dtype=torch.float32)

    def gradient(values: torch.Tensor) -> torch.Tensor:
        leaf = values.clone().requires_grad_()
        (found,) = torch.autograd.grad(losses.get(name)(leaf, targets, labels).sum(), leaf)
        return found

    # Whole numbers, so that moving them by ten thousand loses none of their digits.
    student = (student * 4).round()
    torch.testing.assert_close(gradient(student - 1e4), gradient(student), rtol=1e-3, atol=1e-4)


def test_settings_that_are_no_numbers_are_named() -> None:
    with pytest.raises(lc.LogitCacheError, match="the setting 'k' is given twice"):
        losses.parse("bild(k=8,k=4)")
    _, targets, _ = random_case(k=12, dtype=torch.float32)
    hidden, weight = torch.randn(6, 4), torch.randn(40, 4)
    for wrong in ({"softcap": math.inf}, {"softcap": -1.0}, {"logit_scale": math.nan}, {"logit_scale": 0.0}):
        with pytest.raises(lc.LogitCacheError, match=f"{next(iter(wrong))} = .* must be a number above 0"):
            losses.linear_loss("bild", hidden, weight, targets, **wrong)  # type: ignore[arg-type]
