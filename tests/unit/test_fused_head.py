"""The fused head gives what the dense head and loss give: loss, and gradients of hidden, weight and bias."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import logitcache as lc
from logitcache import losses
from logitcache.losses import fused, sparse_rows

SPECS = [*losses.names(), "bild=1.0,top_kl=0.5", "bild(k=4)=1.0,cross_entropy=0.1"]
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 4.0},
    "everything": {"bias": True, "softcap": 4.0, "logit_scale": 0.3},
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last of them ragged."""
    monkeypatch.setattr(fused, "CHUNK_BYTES", 0)
    monkeypatch.setattr(fused, "_LEAST_ROWS", 7)
    monkeypatch.setattr(sparse_rows, "_STEP_BYTES", 0)
    warnings.filterwarnings("ignore", message=".*shape of the teacher's tail.*")


def case(
    n: int = 23, d: int = 16, v: int = 300, k: int = 12, bias: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], lc.TopK, Tensor]:
    generator = torch.Generator().manual_seed(n + v)
    leaves = {"hidden": torch.randn(n, d, generator=generator), "weight": torch.randn(v, d, generator=generator) / 2}
    if bias:
        leaves["bias"] = torch.randn(v, generator=generator)
    leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}
    teacher = leaves["hidden"].detach().float() @ leaves["weight"].detach().float().T
    teacher = teacher + torch.randn(n, v, generator=generator)
    labels = torch.randint(0, v, (n,), generator=generator)
    return leaves, lc.TopK.from_logits(teacher, k, statistics=True), labels


def dense(
    spec: str, leaves: dict[str, Tensor], targets: lc.TopK, labels: Tensor | None, softcap: float | None, scale: float
) -> Tensor:
    """The textbook form, in the leaves' own dtype up to the loss."""
    logits = torch.nn.functional.linear(leaves["hidden"], leaves["weight"], leaves.get("bias")) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if labels is not None:
        keep = labels != -100
        logits, targets, labels = logits[keep], targets[keep], labels[keep]
    return losses.parse(spec)(logits, targets, labels).mean()


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def fused_loss(spec: str, leaves: dict[str, Tensor], targets: lc.TopK, labels: Tensor | None, **head: Any) -> Tensor:
    return losses.linear_loss(
        spec, leaves["hidden"], leaves["weight"], targets, bias=leaves.get("bias"), labels=labels, **head
    )


def assert_equal_to_dense(spec: str, leaves: dict[str, Tensor], targets: lc.TopK, labels: Tensor, **head: Any) -> None:
    ours = fused_loss(spec, leaves, targets, labels, **head)
    theirs = dense(spec, leaves, targets, labels, head.get("softcap"), head.get("logit_scale", 1.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    mine, exact = gradients(ours, leaves), gradients(theirs, leaves)
    for name in leaves:
        torch.testing.assert_close(
            mine[name], exact[name], rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_dense_form(spec: str, head: str) -> None:
    settings = dict(HEADS[head])
    leaves, targets, labels = case(bias=settings.pop("bias", False))
    labels[[2, 9, 22]] = -100
    assert_equal_to_dense(spec, leaves, targets, labels, **settings)


@pytest.mark.parametrize("spec", ["bild", "s_ld", "top_kl", "forward_kl", "bild=1,cross_entropy=0.1"])
@pytest.mark.parametrize(
    "shape",
    [
        {"n": 1},
        {"n": 7},
        {"v": 5, "k": 5},
        {"v": 5, "k": 2},
        {"k": 1},
        {"k": 3},
        {"v": 2, "k": 1},
        {"v": 1031, "k": 700},
    ],
    ids=str,
)
def test_ragged_shapes(spec: str, shape: dict[str, int]) -> None:
    assert_equal_to_dense(spec, *case(**shape))


@pytest.mark.parametrize("spec", ["bild", "forward_kl", "cross_entropy"])
def test_all_positions_ignored_or_none_at_all(spec: str) -> None:
    leaves, targets, labels = case(bias=True)
    everything_ignored = fused_loss(spec, leaves, targets, torch.full_like(labels, -100))
    leaves["hidden"] = leaves["hidden"].detach()[:0].requires_grad_()
    nothing_there = fused_loss(spec, leaves, targets[:0], labels[:0])
    for loss in (everything_ignored, nothing_there):
        assert loss == 0
        loss.backward()
        assert all(leaf.grad is None or (leaf.grad == 0).all() for leaf in leaves.values())
        assert leaves["weight"].grad is not None


def test_ignored_positions_never_reach_the_head() -> None:
    leaves, targets, labels = case()
    labels[3] = -100
    with torch.no_grad():
        leaves["hidden"][3] = torch.nan
    loss = fused_loss("bild", leaves, targets, labels)
    loss.backward()
    assert loss.isfinite()
    assert leaves["weight"].grad is not None
    assert leaves["weight"].grad.isfinite().all()


@pytest.mark.parametrize("spec", ["bild", "cross_entropy"])
@pytest.mark.parametrize("wanted", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")], ids=str)
def test_only_some_need_gradients(spec: str, wanted: tuple[str, ...]) -> None:
    leaves, targets, labels = case(bias=True)
    expected = gradients(fused_loss(spec, leaves, targets, labels), leaves)
    some = {name: leaf.detach().requires_grad_(name in wanted) for name, leaf in leaves.items()}
    fused_loss(spec, some, targets, labels).backward()
    for name, leaf in some.items():
        assert (leaf.grad is not None) == (name in wanted)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, expected[name])


@pytest.mark.parametrize("spec", ["bild", "cross_entropy"])
def test_no_gradient_needed_no_gradient_made(spec: str) -> None:
    leaves, targets, labels = case()
    with torch.no_grad():
        quiet = fused_loss(spec, leaves, targets, labels)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, fused_loss(spec, leaves, targets, labels).detach())


@pytest.mark.parametrize("spec", ["bild", "cross_entropy"])
def test_the_upstream_gradient_scales_everything(spec: str) -> None:
    leaves, targets, labels = case(bias=True)
    once = gradients(fused_loss(spec, leaves, targets, labels), leaves)
    scaled = gradients(fused_loss(spec, leaves, targets, labels) * 1024, leaves)
    for name in leaves:
        torch.testing.assert_close(scaled[name], once[name] * 1024)


@pytest.mark.parametrize("spec", ["bild", "cross_entropy"])
def test_a_second_backward_pass_repeats_the_first(spec: str) -> None:
    leaves, targets, labels = case()
    loss = fused_loss(spec, leaves, targets, labels) * 3
    first = torch.autograd.grad(loss, leaves["weight"], retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(loss, leaves["weight"], retain_graph=True)[0], first)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves["weight"])[0], first)


def test_the_sum_is_the_mean_times_the_positions_that_are_not_ignored() -> None:
    leaves, targets, labels = case()
    labels[:4] = -100
    mean = fused_loss("bild", leaves, targets, labels)
    torch.testing.assert_close(fused_loss("bild", leaves, targets, labels, reduction="sum"), mean * 19)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_the_simple_form(spec: str, dtype: torch.dtype) -> None:
    leaves, targets, labels = case(n=64, d=32, v=600, dtype=dtype, bias=True)
    exact_leaves = {name: leaf.detach().float().requires_grad_() for name, leaf in leaves.items()}
    truth = dense(spec, exact_leaves, targets, labels, None, 1.0)
    truths = gradients(truth, exact_leaves)
    ours, naive = fused_loss(spec, leaves, targets, labels), dense(spec, leaves, targets, labels, None, 1.0)
    assert (ours - truth).abs() <= (naive - truth).abs() + 1e-6
    our_gradients, naive_gradients = gradients(ours, leaves), gradients(naive, leaves)
    for name in leaves:
        assert our_gradients[name].dtype == dtype
        our_error, naive_error = (
            (found[name].float() - truths[name]).norm() / truths[name].norm()
            for found in (our_gradients, naive_gradients)
        )
        # One rounding of the result to the dtype can't be avoided by either.
        assert our_error <= naive_error * 1.02 + 1e-4, f"{name}: {our_error} against {naive_error}"


def test_float64_stays_float64() -> None:
    leaves, targets, labels = case(dtype=torch.float64, n=5, d=4, v=9, k=9)
    for spec in ("bild(k=3)", "forward_kl"):
        loss = fused_loss(spec, leaves, targets, labels)
        assert loss.dtype == torch.float64
        assert torch.autograd.gradcheck(
            lambda h, w, s=spec: losses.linear_loss(s, h, w, targets, labels=labels), tuple(leaves.values())
        )


def test_only_rows_that_are_read_get_a_gradient() -> None:
    leaves, targets, labels = case(v=3000)
    gradient = gradients(fused_loss("bild", leaves, targets, labels), leaves)["weight"]
    touched = (gradient != 0).any(1).sum()
    assert 8 <= touched <= 16 * 23


def test_never_holds_the_logits_of_all_positions() -> None:
    """No tensor that is made on the way is as large as half the logits."""
    leaves, targets, labels = case(n=64, v=4000, d=8)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes.extend(part.numel() for part in torch.utils._pytree.tree_leaves(result) if isinstance(part, Tensor))
            return result

    for spec in SPECS:
        sizes.clear()
        with Watch():
            fused_loss(spec, leaves, targets, labels).backward()
        assert max(sizes) <= 64 * 4000 / 2, spec


def test_stats_report_parts_and_coverage() -> None:
    leaves, targets, labels = case()
    labels[0] = -100
    mix = losses.parse("bild=1.0,bild(k=4)=1.0,cross_entropy=0.1")
    value, stats = losses.head_loss(mix, leaves["hidden"], leaves["weight"], targets, labels=labels)
    logits = (leaves["hidden"] @ leaves["weight"].T)[1:]
    assert stats.tokens == 22
    assert set(stats.parts) == {"bild", "bild#2", "cross_entropy"}
    torch.testing.assert_close(stats.parts["bild"], losses.get("bild")(logits, targets[1:]).mean())
    torch.testing.assert_close(value, stats.parts["bild"] + stats.parts["bild#2"] + 0.1 * stats.parts["cross_entropy"])
    both = [losses.metrics.s_ld_coverage(logits, targets[1:], k).mean() for k in (8, 4)]
    torch.testing.assert_close(stats.coverage, sum(both) / 2)
    quiet = losses.head_loss(losses.get("cross_entropy"), leaves["hidden"], leaves["weight"], targets, labels=labels)[1]
    assert quiet.coverage is None


def test_bad_input_is_refused_before_any_work() -> None:
    leaves, targets, _ = case(bias=True)
    hidden, weight = leaves["hidden"], leaves["weight"]
    with pytest.raises(lc.LogitCacheError, match=r"\[N, D\] and \[V, D\]"):
        losses.linear_loss("bild", hidden[:, :3], weight, targets)
    with pytest.raises(lc.LogitCacheError, match="bias"):
        losses.linear_loss("bild", hidden, weight, targets, bias=weight[:, 0][:5])
    with pytest.raises(lc.LogitCacheError, match="positions"):
        losses.linear_loss("bild", hidden[:5], weight, targets)
    with pytest.raises(lc.LogitCacheError, match="reduction = 'none'"):
        losses.linear_loss("bild", hidden, weight, targets, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(lc.LogitCacheError, match="softcap"):
        losses.linear_loss("bild", hidden, weight, targets, softcap=0.0)
    with pytest.raises(lc.LogitCacheError, match="needs labels"):
        losses.linear_loss("bild=1,cross_entropy=1", hidden, weight, targets)
    with pytest.raises(lc.LogitCacheError, match="takes no more settings"):
        losses.linear_loss(losses.get("bild"), hidden, weight, targets, k=4)


@pytest.mark.parametrize("spec", ["forward_kl", "bild=1.0,forward_kl=1.0", "bild=1.0,residual_kl=0.5"])
@pytest.mark.parametrize("beyond", ["tail_samples", "candidates"])
def test_entries_beyond_the_top(spec: str, beyond: str) -> None:
    leaves, _, labels = case()
    labels[::4] = -100
    generator = torch.Generator().manual_seed(3)
    logits, reference = (torch.randn(len(labels), 300, generator=generator) * 3 for _ in range(2))
    draws = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    more: dict[str, Any] = {"draws": draws} if beyond == "tail_samples" else {"reference": reference}
    targets = lc.TopK.from_logits(logits, 16, **{beyond: 6}, **more)
    ours = losses.linear_loss(spec, **leaves, targets=targets, labels=labels)
    theirs = dense(spec, leaves, targets, labels, None, 1.0)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    expected = gradients(theirs, leaves)
    for name, found in gradients(ours, leaves).items():
        torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-5)
