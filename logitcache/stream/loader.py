"""A cache as a stream of batches, made in advance in threads; the same for any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from logitcache.errors import ConfigError, ResumeMismatchError
from logitcache.format.arrays import ShardArrays
from logitcache.stream.batches import Batch, collate
from logitcache.stream.division import divide
from logitcache.stream.layout import Layout
from logitcache.stream.lengths import Lengths
from logitcache.stream.mixture import MixedOrder, Mixture
from logitcache.stream.order import EpochOrder, Order
from logitcache.stream.position import Position
from logitcache.stream.prefetch import Windows, prefetched
from logitcache.stream.readable import Readable
from logitcache.stream.rows import Row, RowPlan


class Stream(IterableDataset[Batch]):
    """Batches of a cache in a fixed order; see :func:`stream` for the arguments.

    An iteration begins at the place that ``load_state_dict`` set, or where the last iteration stopped, and ends after
    ``epochs`` epochs. The next iteration gives the epochs after those, each in its own order.
    Iterate the stream itself (a thread makes batches in advance), or give it to
    ``torch.utils.data.DataLoader(stream, batch_size=None)``. A DataLoader whose workers end with each pass begins with
    the same epoch again: iterate all epochs in one pass, or set ``persistent_workers``.
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
        """``lengths``: of another stream of the same cache, so that they are read only once.

        Raises:
            ConfigError: ``epochs`` or ``prefetch`` is out of range.
            TargetsError: there are no sequences to use.
        """
        super().__init__()
        if prefetch < 0 or (epochs is not None and epochs < 1):
            raise ConfigError(f"epochs is {epochs} and prefetch {prefetch}; they must be at least 1 and 0")
        self.cache, self.layout, self.order, self.epochs = cache, layout, order, epochs
        self.prefetch, self.pin_memory = prefetch, pin_memory
        self.lengths = Lengths(cache) if lengths is None else lengths
        self.sizes = self.lengths.sizes(layout.lengths)
        if isinstance(cache, Mixture):
            cache.quotas(self.sizes)  # raises an error if a component has no sequences
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
        """Tokens of an epoch; for a mixture, the sum of the shares."""
        return int(self.sizes.tokens_S.sum())

    def steps(self, epoch: int) -> int:
        """Global batches in an epoch; with packing it may differ by a few between epochs."""
        return self.plan(epoch).batches(self.layout.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, as plain values for JSON or a checkpoint."""
        return self._position.state(self._settings(), self.cache.digest, self.layout)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved place; the number of ranks or workers may be another.

        Raises:
            ResumeMismatchError: the state is of another cache, order or version; or it was saved inside a step, and the
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
        # At the end: the next iteration begins with the epoch after this pass.
        self._position = Position(self._stop(self._position.epoch) or 0)

    def _stop(self, epoch: int) -> int | None:
        """The epoch after the end of the pass that holds ``epoch``; None if it never ends."""
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

    def _step_batches(self, group: list[Row], shards: dict[int, ShardArrays], epoch: int, step: int) -> Iterator[Batch]:
        layout = self.layout
        targets = _count(shards[shard].targets_of(local) for row in group for shard, local in row.samples)
        lengths_B = [_tokens(row, shards) for row in group] if layout.group_by_length else [0] * len(group)
        template = next(iter(shards.values()))
        for part, rows in enumerate(divide(lengths_B, layout)[layout.rank]):
            yield replace(
                collate([group[row].samples for row in rows], shards, template),
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


def _tokens(row: Row, shards: dict[int, ShardArrays]) -> int:
    return _count(shards[shard].tokens_of(local) for shard, local in row.samples)


def _count(parts: Iterable[slice]) -> int:
    return sum(part.stop - part.start for part in parts)
