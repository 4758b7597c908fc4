"""A cache as a stream of training batches: fixed order, any number of ranks, resumable."""

from __future__ import annotations

from pathlib import Path

from logitcache.cache import open_cache
from logitcache.streaming.batches import Batch
from logitcache.streaming.loader import Layout, Readable, Stream
from logitcache.streaming.order import DEFAULT_WINDOW_TOKENS, Order
from logitcache.streaming.selection import Selection

__all__ = ["Batch", "Layout", "Order", "Selection", "Stream", "stream"]


def stream(
    cache: Readable | str | Path,
    *,
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
    prefetch: int = 4,
    pin_memory: bool = False,
) -> Stream:
    """Stream a cache as training batches.

    The order of samples is a pure function of (seed, epoch, manifest digest, index in the global batch): the number
    of ranks, workers and threads doesn't change which samples a global batch holds.

    Args:
        cache: an open cache (``logitcache.open``), or the path of one.
        batch_size: rows of a global batch, over all ranks and micro-batches; the last one of an epoch may be smaller.
        micro_batch_size: rows of each :class:`Batch` that is yielded; by default all that this rank has in a step.
        pack_tokens: pack sequences into rows of at most so many tokens; by default one sequence a row.
        seed, shuffle: the order; without shuffling, the cache's own.
        epochs: passes over the cache; None never ends.
        rank, world_size: which part of each global batch to yield.
        window_tokens: samples are shuffled within windows of about so many tokens; two windows are in memory.
        vocab_limit: leave out positions whose targets name an id from there on (a student with a smaller head).
        selection: which positions to learn from, by the teacher's confidence, entropy or top-k mass; by default all.
        prefetch: batches to make ahead in a thread; 0 makes them when asked.
        pin_memory: page-locked batches, for copies to a GPU that overlap with computing.

    Raises:
        ConfigError: a setting is out of range, or a sequence doesn't fit ``pack_tokens``.
        TargetsError: the cache holds no sequences.
        CorruptCacheError: while iterating, a shard is damaged; the message names it.
    """
    layout = Layout(batch_size, micro_batch_size, pack_tokens, rank, world_size, vocab_limit, selection)
    opened = open_cache(cache) if isinstance(cache, str | Path) else cache
    return Stream(
        opened, layout, Order(seed, window_tokens, shuffle), epochs=epochs, prefetch=prefetch, pin_memory=pin_memory
    )
