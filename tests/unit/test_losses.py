"""The losses through their public surface: settings, mixes, truncated targets, numerics."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import random_case
from torch import Tensor
from torch.nn import functional

import logitcache as lc
from logitcache import losses
from logitcache.losses import metrics

KL_KINDS = ("bild", "t_ld", "s_ld", "forward_kl", "reverse_kl", "residual_kl", "top_kl", "jsd", "tvd", "dkd", "normkd")
ZERO_AT_THE_TEACHER = KL_KINDS
ANY_TEMPERATURE = ("forward_kl", "reverse_kl", "jsd", "tvd", "nkd")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", message=".*shape of the teacher's tail.*")


# Names, settings, mixes


def test_names_cover_what_the_documentation_promises() -> None:
    promised = {"bild", "t_ld", "s_ld", "cross_entropy", "forward_kl", "reverse_kl", "residual_kl", "top_kl"}
    assert promised | {"dkd", "nkd", "normkd", "jsd", "tvd"} == set(losses.names())
    for name in losses.names():
        assert len(losses.describe(name)) > 60


def test_bild_defaults_are_the_papers() -> None:
    parameters = losses.parameters("bild")
    assert (parameters["k"], parameters["temperature"]) == (8, 3.0)


def test_an_unknown_loss_gets_the_list_of_losses_and_the_nearest_name() -> None:
    with pytest.raises(lc.LogitCacheError, match=r"'bidl'; did you mean bild\? choose from bild, t_ld"):
        losses.get("bidl")


def test_an_unknown_setting_gets_the_list_of_settings() -> None:
    with pytest.raises(lc.LogitCacheError, match="nkd has no setting 'beta'; it has: gamma, temperature"):
        losses.get("nkd", beta=1.0)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("bild", {"k": 1}),
        ("bild", {"k": 8.0}),
        ("bild", {"temperature": 0}),
        ("s_ld", {"missing": "guess"}),
        ("s_ld", {"offset": -1}),
        ("top_kl", {"k": 0}),
        ("forward_kl", {"temperature": math.nan}),
        ("forward_kl", {"temperature": True}),
        ("dkd", {"alpha": -0.1}),
        ("jsd", {"beta": 1.0}),
        ("tvd", {"temperature": "hot"}),
    ],
)
def test_a_setting_that_is_not_allowed_is_named_with_its_value(name: str, params: dict[str, object]) -> None:
    (field, value), *_ = params.items()
    with pytest.raises(lc.LogitCacheError, match=f"{name}: {field} = {value!r} is not allowed"):
        losses.get(name, **params)


def test_a_mix_is_the_weighted_sum() -> None:
    student, targets, labels = random_case()
    mixed = losses.parse("bild=1.0, cross_entropy=0.1")(student, targets, labels)
    parts = losses.get("bild")(student, targets) + 0.1 * losses.get("cross_entropy")(student, targets, labels)
    torch.testing.assert_close(mixed, parts)


def test_settings_in_a_mix() -> None:
    student, targets, _ = random_case()
    mixed = losses.parse("bild(k=4,temperature=2.5)=2,s_ld(missing=drop)")(student, targets)
    parts = 2 * losses.get("bild", k=4, temperature=2.5)(student, targets)
    torch.testing.assert_close(mixed, parts + losses.get("s_ld", missing="drop")(student, targets))


@pytest.mark.parametrize(
    "spec",
    ["", "bild=", "bild=x", "bild=-1", "bild=1;tvd=1", "bild(k)=1", "bild(k=4", "bild==1", "bild=1,", "bild=inf"],
)
def test_a_mix_that_can_not_be_read_says_so(spec: str) -> None:
    with pytest.raises(lc.LogitCacheError):
        losses.parse(spec)


def test_labels_are_required_only_if_they_are_needed() -> None:
    student, targets, _ = random_case()
    for name in losses.names():
        loss = losses.get(name)
        if loss.needs_labels:
            with pytest.raises(lc.LogitCacheError, match="needs labels"):
                loss(student, targets)
        else:
            assert loss(student, targets).shape == (6,)
    assert losses.parse("bild=1,cross_entropy=0.1").needs_labels


def test_ignored_labels() -> None:
    student, targets, labels = random_case()
    assert losses.get("cross_entropy")(student, targets, labels)[1] == 0
    without = losses.get("dkd")(student, targets)
    torch.testing.assert_close(losses.get("dkd")(student, targets, torch.full_like(labels, -100)), without)
    torch.testing.assert_close(losses.get("dkd")(student, targets, labels)[1], without[1])


def test_wrong_shapes_are_refused() -> None:
    student, targets, labels = random_case()
    with pytest.raises(lc.LogitCacheError, match="positions"):
        losses.get("bild")(student[:3], targets)
    with pytest.raises(lc.LogitCacheError, match="labels"):
        losses.get("cross_entropy")(student, targets, labels[:3])
    with pytest.raises(lc.LogitCacheError, match="floating"):
        losses.get("bild")(student[0], targets)
    with pytest.raises(lc.LogitCacheError, match="same tokenizer"):
        losses.get("bild")(student[:, :20], targets)


def test_a_student_with_padding_logits_is_fine() -> None:
    student, targets, _ = random_case(k=16)
    padded = functional.pad(student, (0, 24), value=-30.0)
    torch.testing.assert_close(losses.get("bild")(padded, targets), losses.get("bild")(student, targets))
    torch.testing.assert_close(losses.get("residual_kl")(padded, targets), losses.get("residual_kl")(student, targets))


# Truncated targets


@pytest.mark.parametrize("name", losses.names())
def test_truncated_targets_give_finite_values_and_gradients(name: str) -> None:
    student, targets, labels = random_case(k=5)
    student.requires_grad_()
    loss = losses.get(name)(student, targets, labels)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "tvd"])
def test_the_tail_counts_as_one_event_at_temperature_one(name: str) -> None:
    student, targets, _ = random_case(k=5)
    rest = student.scatter(1, targets.ids, -math.inf).logsumexp(1, keepdim=True)
    buckets = torch.cat([student.gather(1, targets.ids), rest], 1)
    teacher = torch.cat([targets.logprobs, targets.residual_logprob[:, None]], 1)
    expected = losses.get(name)(buckets, lc.TopK.from_logits(teacher, 6))
    torch.testing.assert_close(losses.get(name)(student, targets), expected)


def test_residual_kl_is_at_most_the_full_divergence_and_equals_it_with_everything_listed() -> None:
    student, full, _ = random_case()
    exact = losses.get("forward_kl")(student, full)
    previous = torch.zeros_like(exact)
    for k in (1, 4, 16, 39, 40):
        value = losses.get("residual_kl")(student, full.top(k))
        assert (value >= previous - 1e-12).all()
        assert (value <= exact + 1e-12).all()
        previous = value
    torch.testing.assert_close(previous, exact)
    torch.testing.assert_close(
        metrics.kl_with_residual(student, full.top(4)), losses.get("residual_kl")(student, full.top(4))
    )


@pytest.mark.parametrize("name", ZERO_AT_THE_TEACHER)
@pytest.mark.parametrize("k", [5, 40])
def test_loss_and_gradient_are_zero_if_student_and_teacher_are_equal(name: str, k: int) -> None:
    logits = random_case()[0].requires_grad_()
    targets = lc.TopK.from_logits(logits, k, statistics=True)
    # s-LD looks for the student's 8 while 5 are held: what is missing is filled in, so it can't be zero there.
    loss = losses.get(name, **({"k": 5} if name in ("bild", "s_ld") else {}))(logits, targets)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    if name != "tvd":  # a distance has a kink there
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", ANY_TEMPERATURE)
def test_a_guess_about_the_tail_gives_a_warning(name: str) -> None:
    student, targets, _ = random_case(k=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses.get(name, temperature=2.0)(student, targets)
        assert any("shape of the teacher's tail" in str(warning.message) for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.get(name)(student, targets)
        losses.get(name, temperature=2.0)(*random_case()[:2])


@pytest.mark.parametrize("name", ["normkd", "dkd"])
def test_a_missing_statistic_is_named(name: str) -> None:
    student, targets, _ = random_case(k=5)
    bare = lc.TopK(targets.ids, targets.logprobs, targets.residual_logprob, targets.vocab_size)
    with pytest.raises(lc.LogitCacheError, match="standard deviation of the teacher's logits"):
        losses.get(name)(student, bare)
    full = random_case()[1]
    bare_full = lc.TopK(full.ids, full.logprobs, full.residual_logprob, full.vocab_size)
    torch.testing.assert_close(losses.get(name)(student, bare_full), losses.get(name)(student, full))


# Numerics


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("k", [5, 12])
def test_gradcheck(name: str, k: int) -> None:
    student, targets, labels = random_case(n=3, v=12, k=k)
    student.requires_grad_()
    # The fills and the student-shaped tail depend on the student but carry no gradient, so they are held fixed.
    if k < 12 and name in ("forward_kl", "reverse_kl", "jsd", "tvd", "dkd", "nkd", "normkd"):
        whole = losses.tail.with_student_tail(targets, student)
        targets = lc.TopK.from_logits(whole, 12, statistics=True)
    assert torch.autograd.gradcheck(lambda logits: losses.get(name)(logits, targets, labels), (student,))


EXTREMES = ("peaked", "uniform", "tied", "holes", "half", "tiny", "random")


def extreme(kind: str, n: int, v: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=generator) * 3
    rank = torch.rand(n, v, generator=generator).argsort(1)
    return {
        "peaked": torch.where(rank == 0, 200.0, logits - 200),
        "uniform": torch.full((n, v), 1.5),
        "tied": logits.round().clamp(-1, 1),
        "holes": torch.where(rank < max(1, v // 4), logits, -math.inf),
        "half": torch.where(logits > 0, 65504.0, -65504.0),
        "tiny": logits * 1e-6,
        "random": logits,
    }[kind]


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(losses.names()),
    teacher=st.sampled_from(EXTREMES),
    student=st.sampled_from([kind for kind in EXTREMES if kind != "holes"]),
    v=st.integers(2, 80),
    share=st.floats(0, 1),
    residual=st.sampled_from(["as it is", "none", "all"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_extreme_inputs_give_finite_losses_and_gradients(
    name: str, teacher: str, student: str, v: int, share: float, residual: str, dtype: torch.dtype, seed: int
) -> None:
    k = max(1, round(share * v))
    targets = lc.TopK.from_logits(extreme(teacher, 4, v, seed), k, statistics=True)
    if residual != "as it is" and k < v:
        flat = torch.full((4,), -math.inf if residual == "none" else 0.0)
        logprobs = targets.logprobs if residual == "none" else torch.full_like(targets.logprobs, -math.inf)
        targets = lc.TopK(targets.ids, logprobs, flat, v, targets.log_partition, targets.logit_std)
    logits = extreme(student, 4, v, seed + 1).to(dtype).requires_grad_()
    labels = torch.tensor([0, -100, v - 1, 1])
    loss = losses.get(name)(logits, targets, labels)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all(), loss
    assert (loss >= 0).all(), loss
    assert logits.grad is not None
    # The loss is finite in float32; what a half-precision gradient overflows to is the model's own affair.
    wide = logits.detach().float().requires_grad_()
    losses.get(name)(wide, targets, labels).sum().backward()
    assert wide.grad is not None
    assert wide.grad.isfinite().all(), wide.grad


@pytest.mark.parametrize("name", losses.names())
def test_half_precision_logits_are_computed_in_float32(name: str) -> None:
    student, targets, labels = random_case(dtype=torch.float32, k=12)
    rounded = student.bfloat16()
    ours = losses.get(name)(rounded, targets, labels)
    torch.testing.assert_close(ours, losses.get(name)(rounded.float(), targets, labels), rtol=0, atol=0)
