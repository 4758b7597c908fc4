"""The caches of a training run: one cache, or several mixed, opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache
from logitcache.errors import TargetsError, TokenizerMismatchError
from logitcache.stream import LengthFilter, Mixture, Selection, Stream
from logitcache.stream.layout import Layout
from logitcache.stream.lengths import Lengths
from logitcache.stream.mixture import describe
from logitcache.stream.order import Order
from logitcache.targets.beyond import Beyond
from logitcache.train.config import TrainConfig


@dataclass(frozen=True)
class Source:
    """The caches of a run.

    Attributes:
        caches: in the order of the settings; all have the same tokenizer.
        readable: the cache or mixture to stream.
    """

    caches: tuple[Cache, ...]
    readable: Cache | Mixture

    @classmethod
    def open(cls, config: TrainConfig) -> Source:
        """Open the caches of a configuration.

        Raises:
            TargetsError: a cache holds no targets.
            ConfigError, TokenizerMismatchError: the caches can't be mixed, or not with these weights.
            LogitCacheError: as ``logitcache.open`` raises.
        """
        caches = tuple(open_place(place) for place in config.caches)
        for cache in caches:
            if cache.manifest.totals.targets == 0:
                raise TargetsError(f"the cache {cache.root} holds no targets: there is nothing to learn from it")
        mixture = Mixture(caches, config.weights)
        return cls(caches, mixture if len(caches) > 1 else caches[0])

    @property
    def first(self) -> Cache:
        """The first cache; all have its tokenizer and vocabulary."""
        return self.caches[0]

    @cached_property
    def lengths(self) -> Lengths:
        """The lengths of all sequences, shared by all streams of the run so that they are read only once."""
        return Lengths(self.readable)

    def stream(
        self, config: TrainConfig, micro_batch_size: int, vocab_limit: int, rank: int = 0, world_size: int = 1
    ) -> Stream:
        """The run's batches for one rank."""
        layout = Layout(
            batch_size=config.batch_size,
            micro_batch_size=micro_batch_size,
            pack_tokens=config.pack_tokens,
            rank=rank,
            world_size=world_size,
            vocab_limit=vocab_limit,
            selection=Selection(config.min_mass, config.min_confidence, config.max_confidence, config.max_entropy),
            lengths=LengthFilter(config.min_length, config.max_length),
            group_by_length=config.group_by_length,
        )
        return Stream(
            self.readable,
            layout,
            Order(config.seed, config.window_tokens),
            epochs=None if config.max_steps else config.epochs,
            prefetch=config.prefetch,
            pin_memory=torch.cuda.is_available(),
            lengths=self.lengths,
        )

    def components(self, stream: Stream) -> list[dict[str, Any]]:
        """How much an epoch takes from each cache of a mixture; empty for a single cache."""
        return describe(self.readable, stream.sizes) if isinstance(self.readable, Mixture) else []

    def teachers(self) -> str:
        return ", ".join(dict.fromkeys(cache.manifest.provenance.teacher.name for cache in self.caches))

    def notes(self, stream: Stream, held_out: Cache | None) -> list[str]:
        """Notes for the user about the caches and the held-out cache."""
        notes = []
        if held_out is not None and _teacher(held_out) not in map(_teacher, self.caches):
            other = held_out.manifest.provenance.teacher.name
            notes.append(
                f"the student is measured against another teacher ({other}) than it learns from ({self.teachers()})"
            )
        if len({_teacher(cache) for cache in self.caches}) > 1:
            notes.append(f"the caches are of different teachers ({self.teachers()}): the student learns from them all")
        ks = [cache.ranked for cache in self.caches]
        if len(set(map(_entries, self.caches))) > 1:
            notes.append(
                f"the caches hold the top {', '.join(map(str, ks))} of each position: the first {min(ks)} are used, "
                "the others count as residual mass"
            )
        held = sum(cache.manifest.totals.sequences for cache in self.caches)
        left = int(stream.sizes.sequences_S.sum())
        if left < held:
            notes.append(f"{stream.layout.lengths}: {held - left:,} of {held:,} sequences are left out")
        return notes


def _entries(cache: Cache) -> tuple[int, Beyond]:
    return cache.top_k, cache.manifest.provenance.beyond


def _teacher(cache: Cache) -> tuple[str, str | None]:
    teacher = cache.manifest.provenance.teacher
    return teacher.name, teacher.weights_digest


def check_eval_cache(caches: Sequence[Cache], held_out: Cache | None) -> None:
    """Check that a held-out cache can be used with the caches to train on.

    Raises:
        TokenizerMismatchError: it has another tokenizer or vocabulary.
        TargetsError: it holds no targets.
    """
    if held_out is None:
        return
    cache = caches[0]
    for name in ("vocab_size", "tokenizer_digest"):
        ours, theirs = getattr(cache.manifest.provenance, name), getattr(held_out.manifest.provenance, name)
        if ours != theirs:
            raise TokenizerMismatchError(
                f"the caches don't go together: {name} is {ours} in {cache.root} and {theirs} in {held_out.root}"
            )
    if held_out.manifest.totals.targets == 0:
        raise TargetsError(f"the cache {held_out.root} holds no targets: nothing can be measured against it")
