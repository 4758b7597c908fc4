"""A cache as a stream of batches: decoded ahead in threads, the same batches for any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from logitcache.cache.arrays import ShardArrays
from logitcache.errors import ConfigError, ResumeMismatchError
from logitcache.streaming.batches import Batch, DecodedShard, collate
from logitcache.streaming.lengths import EVERY_LENGTH, LengthFilter, Lengths
from logitcache.streaming.mixture import MixedOrder, Mixture
from logitcache.streaming.order import EpochOrder, Order
from logitcache.streaming.position import Position
from logitcache.streaming.prefetch import Windows, prefetched
from logitcache.streaming.rows import Row, RowPlan
from logitcache.streaming.selection import Selection


class Readable(Protocol):
    """What streaming needs of a cache."""

    @property
    def digest(self) -> str: ...
    @property
    def shards(self) -> Any: ...
    def read_shard(self, index: int) -> ShardArrays: ...
    def read_lengths(self, index: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Layout:
    """How an epoch's rows become batches.

    Attributes:
        batch_size: rows of a global batch, over all ranks and micro-batches.
        micro_batch_size: rows of one forward pass on one rank; None means all that the rank has.
        pack_tokens: pack sequences into rows of at most so many tokens; None: one sequence a row.
        rank, world_size: which part of each global batch is ours.
        vocab_limit: leave out positions whose targets name an id from there on (a student with a smaller head).
        selection: which positions to learn from.
        lengths: which sequences take part.
    """

    batch_size: int = 8
    micro_batch_size: int | None = None
    pack_tokens: int | None = None
    rank: int = 0
    world_size: int = 1
    vocab_limit: int | None = None
    selection: Selection | None = None
    lengths: LengthFilter = EVERY_LENGTH

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "pack_tokens", "world_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ConfigError(f"{name} is {value}; it must be a whole number from 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank is {self.rank}; it must be from 0 to {self.world_size - 1}")

    @property
    def parts(self) -> int:
        """Micro-batches of a step, the same on every rank: what gradient accumulation counts."""
        return -(-self._rank_rows // self.micro_rows)

    @property
    def micro_rows(self) -> int:
        """Rows of one micro-batch; the last of a step may have fewer."""
        return self.micro_batch_size or self._rank_rows

    @property
    def _rank_rows(self) -> int:
        return -(-self.batch_size // self.world_size)


class Stream(IterableDataset[Batch]):
    """Batches of a cache in a fixed order; see :func:`stream` for the arguments.

    Iterating goes on where ``load_state_dict`` or an iteration that was broken off left it, and ends after ``epochs``
    epochs; iterating once more gives the epochs after those, in their own order.
    Iterate it alone (a thread prefetches), or give it to ``torch.utils.data.DataLoader(stream, batch_size=None)``. A
    DataLoader whose workers end with each pass begins with the same epoch again: ask for all epochs in one pass, or
    for ``persistent_workers``.
    """

    def __init__(
        self,
        cache: Readable,
        layout: Layout,
        order: Order,
        *,
        epochs: int | None,
        prefetch: int,
        pin_memory: bool = False,
        lengths: Lengths | None = None,
    ) -> None:
        """``lengths``: those of another stream of the same cache, to read them only once."""
        super().__init__()
        if prefetch < 0 or (epochs is not None and epochs < 1):
            raise ConfigError(f"epochs is {epochs} and prefetch {prefetch}; they must be at least 1 and 0")
        self.cache, self.layout, self.order, self.epochs = cache, layout, order, epochs
        self.prefetch, self.pin_memory = prefetch, pin_memory
        self.lengths = Lengths(cache) if lengths is None else lengths
        self.sizes = self.lengths.sizes(layout.lengths)
        if isinstance(cache, Mixture):
            cache.quotas(self.sizes)  # raises where a component has nothing to give
        self._position = Position()

    def plan(self, epoch: int) -> RowPlan:
        """The rows of one epoch. With packing, every sequence's length is read (once)."""
        if isinstance(self.cache, Mixture):
            order: EpochOrder = MixedOrder(self.order, self.sizes, epoch, self.cache)
        else:
            order = self.order.epoch(self.sizes, epoch)
        if self.layout.pack_tokens is not None:
            self.lengths.read_all()
        return RowPlan(order, self.layout.pack_tokens, self.lengths.of)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of an epoch; of a mixture, what the shares add up to."""
        return int(self.sizes.tokens_S.sum())

    def steps(self, epoch: int) -> int:
        """Global batches in an epoch; with packing it may differ by a few between epochs."""
        return self.plan(epoch).batches(self.layout.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on: plain values, for JSON or a checkpoint."""
        return self._position.state(self._settings(), self.cache.digest, self.layout)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place, possibly with another number of ranks or workers.

        Raises:
            ResumeMismatchError: the state is of another cache, order or version, or stands inside a step while the
                ranks or micro-batches have changed.
        """
        self._position = Position.load(state, self._settings(), self.cache.digest, self.layout)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        turn = self._position.turn
        batches: Iterator[Batch] = islice(self._from(self._position), (number - turn) % count, None, count)
        if self.pin_memory and worker is None:  # DataLoader pins what its workers send by itself
            batches = (batch.pin_memory() for batch in batches)
        if self.prefetch and worker is None:
            batches = prefetched(batches, self.prefetch)
        for batch in batches:
            self._position = Position.after(batch, (number + 1) % count)
            yield batch
        # Through to the end: iterating again begins with the epoch after this pass.
        self._position = Position(self._stop(self._position.epoch) or 0)

    def _stop(self, epoch: int) -> int | None:
        """The first epoch that the pass which holds ``epoch`` leaves out; None if it never ends."""
        return None if self.epochs is None else (epoch // self.epochs + 1) * self.epochs

    def _from(self, position: Position) -> Iterator[Batch]:
        epoch, samples, part = position.epoch, position.samples_consumed, position.part
        stop = self._stop(epoch)
        while stop is None or epoch < stop:
            plan = self.plan(epoch)
            if samples < plan.order.samples:
                yield from islice(self._epoch_batches(plan, epoch, samples), part, None)
            epoch, samples, part = epoch + 1, 0, 0

    def _epoch_batches(self, plan: RowPlan, epoch: int, samples: int) -> Iterator[Batch]:
        first = plan.rows_before(samples)
        step, inside = divmod(first, self.layout.batch_size)
        if inside:
            raise ResumeMismatchError(f"{samples} samples don't end at a batch of {self.layout.batch_size} rows")
        rows = plan.iterate(first)
        windows = Windows(self.cache, plan, self.layout)
        try:
            while group := list(islice(rows, self.layout.batch_size)):
                shards = windows.holding(group)
                yield from self._step_batches(group, shards, epoch, step)
                step += 1
        finally:
            windows.close()

    def _step_batches(
        self, group: list[Row], shards: dict[int, DecodedShard], epoch: int, step: int
    ) -> Iterator[Batch]:
        layout = self.layout
        mine = [row.samples for row in group[layout.rank :: layout.world_size]]
        targets = sum(shards[shard].targets_of(local) for row in group for shard, local in row.samples)
        size = layout.micro_rows
        template = next(iter(shards.values()))
        for part in range(layout.parts):
            yield replace(
                collate(mine[part * size : (part + 1) * size], shards, template),
                batch_targets=targets,
                epoch=epoch,
                step=step,
                part=part,
                samples_before=group[0].consumed - len(group[0].samples),
                samples_consumed=group[-1].consumed,
                ends_step=part == layout.parts - 1,
            )

    def _settings(self) -> dict[str, Any]:
        return {**asdict(self.order), "pack_tokens": self.layout.pack_tokens, **asdict(self.layout.lengths)}
