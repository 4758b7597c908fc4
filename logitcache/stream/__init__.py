"""Stream a cache as training batches: in a fixed order, for any number of ranks, and resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from logitcache.cache.opening import open_place
from logitcache.errors import ConfigError
from logitcache.stream.batches import Batch
from logitcache.stream.layout import Layout
from logitcache.stream.loader import Stream
from logitcache.stream.mixture import Mixture
from logitcache.stream.order import DEFAULT_WINDOW_TOKENS, Order
from logitcache.stream.readable import Readable
from logitcache.stream.selection import LengthFilter, Selection

__all__ = ["Batch", "Layout", "LengthFilter", "Mixture", "Order", "Selection", "Stream", "mix", "stream"]


def stream(
    cache: Readable | str | Path | Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
    batch_size: int = 8,
    micro_batch_size: int | None = None,
    pack_tokens: int | None = None,
    seed: int = 0,
    epochs: int | None = 1,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    window_tokens: int = DEFAULT_WINDOW_TOKENS,
    vocab_limit: int | None = None,
    selection: Selection | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    group_by_length: bool = False,
    prefetch: int = 4,
    pin_memory: bool = False,
) -> Stream:
    """Stream a cache as training batches.

    The order of samples is a pure function of (seed, epoch, manifest digest, index in the global batch): the number
    of ranks, workers and threads doesn't change which samples a global batch holds.

    Args:
        cache: an open cache (``logitcache.open``) or the path of one; or a list of them, which are mixed.
        weights: each cache's share of the tokens, in any unit; by default an epoch holds every sequence once.
            See :class:`Mixture`.
        batch_size: rows of a global batch, over all ranks and micro-batches; the last batch of an epoch may be smaller.
        micro_batch_size: rows of each yielded :class:`Batch`; by default all rows of this rank in a step.
        pack_tokens: pack sequences into rows of at most this many tokens; by default a row holds one sequence.
        seed, shuffle: the order of samples; without shuffling it is the cache's own.
        epochs: passes over the cache; None never ends.
        rank, world_size: which part of each global batch to yield.
        window_tokens: samples are shuffled within windows of about so many tokens; two windows are in memory.
        vocab_limit: leave out positions whose targets list this id or a larger one (for a student with fewer ids).
        selection: which positions to use, by the teacher's confidence, entropy or top-k mass; by default all.
        min_length, max_length: leave out sequences with fewer or more tokens; every sequence's length is read for it.
        group_by_length: divide each global batch over ranks and micro-batches by the lengths of its rows, so that
            little is padded. The batch's loss must then be summed over micro-batches, as :class:`StudentWithLoss
            <logitcache.losses.StudentWithLoss>` does, and not be a mean of their means.
        prefetch: batches to make in advance in a thread; 0 makes each batch when it is asked for.
        pin_memory: put batches into page-locked memory, so that copies to a GPU overlap with computing.

    Raises:
        ConfigError: a setting is out of range, or a sequence doesn't fit ``pack_tokens``.
        TargetsError: the cache holds no sequences, or none is left.
        TokenizerMismatchError: the caches have different tokenizers, and can't be mixed.
        CorruptCacheError: while iterating, a shard is damaged; the message names it.
    """
    lengths = LengthFilter(min_length, max_length)
    layout = Layout(
        batch_size, micro_batch_size, pack_tokens, rank, world_size, vocab_limit, selection, lengths, group_by_length
    )
    order = Order(seed, window_tokens, shuffle)
    return Stream(mix(cache, weights), layout, order, epochs=epochs, prefetch=prefetch, pin_memory=pin_memory)


def mix(cache: Readable | str | Path | Sequence[Any], weights: Sequence[float] | None = None) -> Readable:
    """One cache unchanged, or a list of caches or paths as a :class:`Mixture`. Raises as :func:`stream` does."""
    if isinstance(cache, str | Path):
        cache = open_place(cache)
    if not isinstance(cache, list | tuple):
        if weights is not None:
            raise ConfigError("weights are for several caches: give a list of them")
        return cast(Readable, cache)
    if not cache:
        raise ConfigError("no cache is given: the list is empty")
    caches = [open_place(one) if isinstance(one, str | Path) else one for one in cache]
    mixture = Mixture(caches, weights)
    return mixture if len(caches) > 1 else caches[0]
