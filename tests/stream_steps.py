"""What each step of a stream holds, for tests of the order of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader

from logitcache.stream import Batch, Stream, stream
from logitcache.stream.readable import Readable

WORLDS = (1, 2, 3, 4, 6, 8)
#: (epoch, step, sorted sequences)
Step = tuple[int, int, list[int]]


def sequence_ids(batch: Batch) -> list[int]:
    """Which sequences a batch holds: each starts with its own number in the whole cache (see MemoryCache)."""
    starts = (batch.position_ids == 0) & (batch.input_ids > 0)
    return [int(token) - 1 for token in batch.input_ids[starts]]


@dataclass(frozen=True)
class Settings:
    batch_size: int
    micro_batch_size: int | None
    pack_tokens: int | None
    seed: int
    window_tokens: int
    epochs: int = 2
    min_length: int | None = None
    max_length: int | None = None
    group_by_length: bool = False

    def stream(self, cache: Readable, rank: int = 0, world_size: int = 1, prefetch: int = 0) -> Stream:
        return stream(
            cache,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            pack_tokens=self.pack_tokens,
            seed=self.seed,
            epochs=self.epochs,
            window_tokens=self.window_tokens,
            rank=rank,
            world_size=world_size,
            prefetch=prefetch,
            min_length=self.min_length,
            max_length=self.max_length,
            group_by_length=self.group_by_length,
        )


def steps_of(batches: Iterator[Batch] | DataLoader[Batch] | Stream) -> list[Step]:
    """(epoch, step, sorted sequences) of each step that one rank sees."""
    steps: list[Step] = []
    for batch in batches:
        if not steps or steps[-1][:2] != (batch.epoch, batch.step):
            steps.append((batch.epoch, batch.step, []))
        steps[-1][2].extend(sequence_ids(batch))
    return steps


def global_steps(cache: Readable, chosen: Settings, world_size: int) -> list[Step]:
    """The same for all ranks together."""
    ranks = [steps_of(chosen.stream(cache, rank, world_size)) for rank in range(world_size)]
    return joined_steps(ranks)


def resumed_steps(cache: Readable, chosen: Settings, done: int, before: int, after: int) -> list[Step]:
    """What ``after`` ranks see when they go on where the first of ``before`` ranks was after ``done`` steps."""
    first = chosen.stream(cache, 0, before)
    iterator = iter(first)
    for _ in range(done * first.layout.parts):
        next(iterator)
    ranks = []
    for rank in range(after):
        resumed = chosen.stream(cache, rank, after)
        resumed.load_state_dict(first.state_dict())
        ranks.append(steps_of(resumed))
    return joined_steps(ranks)


def joined_steps(ranks: list[list[Step]]) -> list[Step]:
    """What all ranks saw in each step."""
    joined = []
    for parts in zip(*ranks, strict=True):
        assert len({part[:2] for part in parts}) == 1
        joined.append((*parts[0][:2], sorted(number for part in parts for number in part[2])))
    return joined
