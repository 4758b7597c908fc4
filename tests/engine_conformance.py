"""What every engine must hold to: a test class inherits from :class:`EngineConformance` and says which engine.

Shape legend: N positions that have targets, K entries for each, L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from logitcache import engines
from logitcache.data import TokenSequence
from logitcache.engines import Engine, EngineSettings, Generation
from logitcache.errors import LogitCacheError
from logitcache.models.identity import find_teacher
from logitcache.targets.beyond import Beyond
from logitcache.targets.topk import TopK

K = 8
Open = Callable[..., Engine]


def sequence(length: int, seed: int, marked: float = 1.0) -> TokenSequence:
    """Random tokens; the last predicts nothing, and of the others a share is marked."""
    rng = np.random.default_rng(seed)
    mask_L = (np.arange(length) < length - 1) & (rng.random(length) < marked)
    return TokenSequence(rng.integers(100, 400, length).astype(np.uint32), mask_L)


def mixed() -> list[TokenSequence]:
    """Sequences of many lengths, with all, some and none of their positions marked."""
    lengths = (5, 33, 2, 17, 33, 9, 48)
    some = [sequence(length, seed, marked=0.6) for seed, length in enumerate(lengths)]
    return [sequence(21, 50), *some, sequence(6, 51, marked=0.0), sequence(64, 52)]


def scored(engine: Engine, sequences: Sequence[TokenSequence]) -> list[TopK]:
    """The targets of each sequence, in order. Each must come once, with a row for each of its marked positions."""
    found: dict[int, TopK] = {}
    for which, targets in engine.score(sequences):
        counts = [int(sequences[s].target_mask_L.sum()) for s in which]
        assert len(targets) == sum(counts)
        for s, start, count in zip(which, np.cumsum([0, *counts[:-1]]).tolist(), counts, strict=True):
            assert s not in found
            found[s] = targets[start : start + count]
    assert sorted(found) == list(range(len(sequences)))
    return [found[s] for s in range(len(sequences))]


def assert_same(one: TopK, two: TopK, noise: float) -> None:
    """The same distributions but for rounding; another id only where two are equally probable but for rounding."""
    assert one.ids.shape == two.ids.shape
    assert (one.logprobs - two.logprobs).abs().max() <= noise
    assert (one.residual_logprob - two.residual_logprob).abs().max() <= noise
    ranked = one.ranked
    gaps_NK = one.logprobs[:, :ranked].diff(dim=1).abs()
    close_NK = torch.nn.functional.pad(gaps_NK <= 2 * noise, (1, 1), value=False)
    close_NK[:, -1] = True  # the id behind the last one isn't known
    tied_NK = close_NK[:, :-1] | close_NK[:, 1:]
    assert ((one.ids == two.ids)[:, :ranked] | tied_NK).all()


class EngineConformance:
    """The tests. A test opens at most one engine.

    A subclass is named ``Test…`` and gives ``engine`` and the fixture ``teacher_dir``.
    """

    #: The name that the engine is registered under.
    engine: ClassVar[str]
    #: What batching and another place in memory may change in a log-prob, in nats.
    noise: ClassVar[float] = 1e-4
    #: Settings of its own.
    settings: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def teacher_dir(self) -> Path:
        raise NotImplementedError

    def asked(self, teacher_dir: Path, **more: Any) -> EngineSettings:
        files = find_teacher(str(teacher_dir))
        basic = {"top_k": K, "device": torch.device("cpu"), "dtype": torch.float32, "batch_tokens": 100}
        return EngineSettings(files, **(basic | self.settings | more))

    @pytest.fixture
    def open(self, teacher_dir: Path) -> Open:
        def call(*, generation: bool = False, **more: Any) -> Engine:
            return engines.open_engine(self.engine, self.asked(teacher_dir, **more), generation=generation)

        return call

    def open_or_refuse(self, open: Open, what: str, flag: str, **settings: Any) -> Engine | None:
        """The engine, or None where it can't do this: then it is refused in one line that names the flag."""
        if getattr(engines.get(self.engine).can, what):
            return open(**settings)
        with pytest.raises(LogitCacheError, match=flag) as caught:
            open(**settings)
        assert len(str(caught.value).splitlines()) == 1
        return None

    def test_info_is_truthful(self, open: Open) -> None:
        engine = open()
        info, best = engine.info, engines.get(self.engine).can
        assert info.name == self.engine
        assert isinstance(getattr(torch, info.dtype), torch.dtype)
        assert all(getattr(best, name) for name, able in vars(info.can).items() if able)
        assert all(targets.vocab_size == info.vocab_size for targets in scored(engine, mixed()))

    def test_each_sequence_comes_once_whatever_the_grouping(self, open: Open) -> None:
        engine = open()
        for sequences in (mixed(), mixed()[::-1], mixed()[:1] * 5):
            for targets in scored(engine, sequences):
                assert targets.k == K
                assert targets.ids.device.type == targets.logprobs.device.type == "cpu"
                assert (targets.ids.dtype, targets.logprobs.dtype) == (torch.int64, torch.float32)
                assert targets.log_partition is None
                assert targets.logit_std is None

    def test_alone_as_among_others(self, open: Open) -> None:
        engine, sequences = open(), mixed()
        for one, together in zip(sequences, scored(engine, sequences), strict=True):
            if one.target_mask_L.any():
                assert_same(scored(engine, [one])[0], together, self.noise)

    def test_later_tokens_change_nothing(self, open: Open) -> None:
        engine, whole = open(), sequence(40, 3)
        beginning = TokenSequence(whole.token_ids_L[:25], whole.target_mask_L[:25])
        long, short = scored(engine, [whole, beginning])
        assert_same(long[:25], short, self.noise)

    def test_marked_positions_only(self, open: Open) -> None:
        engine, whole = open(), sequence(30, 4)
        kept = np.flatnonzero(np.arange(30) % 3 == 1)
        mask_L = np.zeros(30, bool)
        mask_L[kept] = True
        every, some = scored(engine, [whole, TokenSequence(whole.token_ids_L, mask_L)])
        kept = kept[kept < 29]
        assert_same(every[torch.from_numpy(kept)], some[: len(kept)], self.noise)

    def test_sorted_and_distinct(self, open: Open) -> None:
        for targets in scored(open(), mixed()):
            step_NK, rise_NK = targets.logprobs.diff(dim=1), targets.ids.diff(dim=1)
            assert (step_NK <= 0).all()
            assert (rise_NK[step_NK == 0] > 0).all()  # equal values by ascending id
            assert all(len(set(row)) == K for row in targets.ids.tolist())
            assert ((targets.ids >= 0) & (targets.ids < targets.vocab_size)).all()

    def test_residual_is_the_rest(self, open: Open) -> None:
        for targets in scored(open(), mixed()):
            whole_N = targets.logprobs.double().exp().sum(1) + targets.residual_logprob.double().exp()
            assert torch.allclose(whole_N, torch.ones_like(whole_N), atol=1e-5)

    def test_same_again(self, open: Open) -> None:
        engine = open()
        for one, two in zip(scored(engine, mixed()), scored(engine, mixed()), strict=True):
            if engine.info.can.reproducible:
                assert torch.equal(one.ids, two.ids)
                assert torch.equal(one.logprobs, two.logprobs)
                assert torch.equal(one.residual_logprob, two.residual_logprob)
            elif len(one):
                assert_same(one, two, self.noise)

    def test_single_token(self, open: Open) -> None:
        marked = TokenSequence(np.array([200], np.uint32), np.array([True]))
        (targets,) = scored(open(), [marked])
        assert len(targets) == 1
        assert torch.isfinite(targets.logprobs).all()

    def test_nothing_asked_nothing_given(self, open: Open) -> None:
        engine = open()
        assert list(engine.score([])) == []
        (targets,) = scored(engine, [sequence(6, 5, marked=0.0)])
        assert len(targets) == 0

    def test_statistics(self, open: Open) -> None:
        engine = self.open_or_refuse(open, "statistics", "--statistics", statistics=True)
        for targets in [] if engine is None else scored(engine, mixed()):
            assert targets.log_partition is not None
            assert targets.logit_std is not None
            assert torch.isfinite(targets.log_partition).all()
            assert (targets.logit_std > 0).all()

    def test_tail_samples(self, open: Open) -> None:
        engine = self.open_or_refuse(open, "tail_samples", "--tail-samples", beyond=Beyond(tail_samples=3))
        if engine is None:
            return
        sequences = mixed()
        for one, together in zip(sequences, scored(engine, sequences), strict=True):
            assert (together.k, together.ranked, together.tail_samples) == (K, K - 3, 3)
            assert all(len(set(row)) == K for row in together.ids.tolist())
            if len(together):  # what is drawn depends on the sequence alone
                (again,) = scored(engine, [one])
                assert (again.ids == together.ids).float().mean() > 0.9

    def test_candidates(self, open: Open, teacher_dir: Path) -> None:
        # The teacher itself as the reference prefers what comes next in the teacher's own order.
        more = {"reference": find_teacher(str(teacher_dir)), "beyond": Beyond(candidates=3)}
        engine = self.open_or_refuse(open, "candidates", "--reference", **more)
        for targets in [] if engine is None else scored(engine, mixed()):
            assert (targets.k, targets.ranked, targets.candidates) == (K, K - 3, 3)
            assert (targets.logprobs.diff(dim=1) <= self.noise).all()

    def test_answers(self, open: Open) -> None:
        engine = self.open_or_refuse(open, "generation", "--generate", generation=True)
        if engine is None:
            return
        generation = Generation(max_new_tokens=5)
        last = [np.arange(length) == length - 1 for length in (7, 1, 12, 4)]
        prompts = [TokenSequence(sequence(len(mask_L), 9 + len(mask_L)).token_ids_L, mask_L) for mask_L in last]
        given = [
            pair for which, answers in engine.answer(prompts, generation) for pair in zip(which, answers, strict=True)
        ]
        assert sorted(s for s, _ in given) == list(range(len(prompts)))
        for s, answered in given:
            length = len(prompts[s].token_ids_L)
            assert answered.token_ids_L[:length].tolist() == prompts[s].token_ids_L.tolist()
            assert 1 <= len(answered.token_ids_L) - length <= 5
            places_L = np.arange(len(answered.token_ids_L))
            assert answered.target_mask_L.tolist() == ((places_L >= length - 1) & (places_L < places_L[-1])).tolist()
            (targets,) = scored(engine, [answered])
            chosen_N = torch.from_numpy(answered.token_ids_L[length:].astype(np.int64))
            own_N = targets.logprobs.where(targets.ids == chosen_N[:, None], -torch.inf).amax(1)
            assert (targets.logprobs[:, 0] - own_N <= self.noise).all()  # temperature 0 takes the most probable
        assert list(engine.answer([], generation)) == []

    def test_estimates(self, open: Open) -> None:
        engine, one = open(), sequence(20, 6)
        assert engine.computed_tokens([]) == 0
        assert engine.computed_tokens([20, 3, 7]) >= 30
        half, most = (engine.k_for_mass(one, mass) for mass in (0.5, 0.9))
        if half is not None and most is not None:
            assert 1 <= half <= most <= engine.info.vocab_size
