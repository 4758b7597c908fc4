"""One engine in several processes that each hold a part of the teacher's weights: one leads, and the others follow.

Each process holds a part of every layer, so all must run the same forward passes. The first process, the leader, does
all the work of a dump. Before each call of the engine it sends the call to the others, the followers: they make the
same call, drop the result, and wait for the next one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from logitcache.data import TokenSequence
from logitcache.engines.base import Engine, EngineInfo
from logitcache.engines.generate import Generation
from logitcache.errors import ConfigError, DumpInterruptedError
from logitcache.targets.topk import TopK
from logitcache.utils.device import DEVICES, Devices, local_device

# Between two calls the leader may tokenise a corpus, or wait for other workers: usual time limits are too short.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """The processes of one worker; only one if the teacher isn't split.

    Attributes:
        rank: the rank of this process; 0 is the leader.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def follows(self) -> bool:
        return self.rank > 0

    def engine(self, load: Callable[[], Engine]) -> Engine:
        """The leader's engine. All processes load it now, and run all its calls."""
        return load() if self.size == 1 else _Leader(load)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Release the followers at the end, or when a signal stops this process.

        After any other error they may still be inside a call: torchrun stops them when this process fails.
        """
        try:
            yield
        except DumpInterruptedError:
            self._release()
            raise
        self._release()

    def _release(self) -> None:
        if self.size > 1:
            _exchange(None)

    def follow(self, load: Callable[[], Engine]) -> None:
        """Make the same calls as the leader, until it releases this process."""
        engine: Engine | None = None
        while (command := _exchange(None)) is not None:
            name, arguments = command
            if name == "load":
                engine = load()
                continue
            result = getattr(engine, name)(*arguments)
            if isinstance(result, Iterator):
                deque(result, maxlen=0)  # a generator computes while it is read


@contextmanager
def team(
    split: bool,
    device: torch.device,
    *,
    devices: Devices = DEVICES,
    join: Callable[..., Any] = distributed.init_process_group,
) -> Iterator[Team]:
    """Join the processes that torchrun started, if the teacher is to be ``split`` over them.

    Args:
        split: False for a single process.
        device: the device of this process; it becomes the current device.
        devices: the devices of this machine.
        join: makes the process group, as :func:`torch.distributed.init_process_group` does.

    Raises:
        ConfigError: the teacher is to be split, but torchrun didn't start this process, or the device belongs to
            another process.
    """
    if not split:
        yield Team()
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "tensor_parallel splits the teacher over the processes that torchrun starts: start it with torchrun"
        )
    if device.index is not None and device != local_device(device.type, devices):
        raise ConfigError(
            f"tensor_parallel needs a GPU for each process, but device {device} would be the same for all: "
            f"give --device {device.type}"
        )
    # Before the first broadcast: NCCL sends objects from the current device, which is the first GPU until it is set.
    devices.make_current(device)
    joined = not distributed.is_initialized()
    if joined and device.type == "cuda":
        join("nccl", timeout=_TIMEOUT, device_id=device)
    elif joined:
        join("gloo", timeout=_TIMEOUT)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        if joined:
            distributed.destroy_process_group()


def _exchange(command: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]] | None:
    """Broadcast the leader's command to every process; the followers' argument is ignored."""
    box = [command]
    distributed.broadcast_object_list(box)
    return box[0]


class _Leader(Engine):
    """An engine that sends each call to the followers first. The caller must read its results to the end."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        _exchange(("load", ()))
        self._engine = load()

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def score(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[Sequence[int], TopK]]:
        _exchange(("score", (sequences,)))
        yield from self._engine.score(sequences)

    def answer(
        self, prompts: Sequence[TokenSequence], generation: Generation
    ) -> Iterator[tuple[Sequence[int], Sequence[TokenSequence]]]:
        _exchange(("answer", (prompts, generation)))
        yield from self._engine.answer(prompts, generation)

    def k_for_mass(self, sequence: TokenSequence, mass: float) -> int | None:
        _exchange(("k_for_mass", (sequence, mass)))
        return self._engine.k_for_mass(sequence, mass)

    def computed_tokens(self, lengths: Sequence[int]) -> int:
        return self._engine.computed_tokens(lengths)
