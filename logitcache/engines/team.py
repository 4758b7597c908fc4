"""One engine in several processes that share the teacher's weights: one process leads, the others follow.

All processes hold a part of every layer, so all must run the same passes. The first process does everything that a
dump does. Before each call it tells the others which; they do the same, drop the result, and wait for the next.
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

# Between two passes the leader may tokenise a corpus, or wait for other workers: longer than any usual time limit.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """The processes of one worker; one alone unless a teacher is split.

    Attributes:
        rank: this process; 0 leads.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def follows(self) -> bool:
        return self.rank > 0

    def engine(self, load: Callable[[], Engine]) -> Engine:
        """The leader's engine: loaded by all, and run by all from now on."""
        return load() if self.size == 1 else _Leader(load)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Lets the others go at the end, or when this process is told to stop.

        After any other error they may stand in the middle of a pass: torchrun ends them when this process fails.
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
        """Run what the leader runs, until it is done."""
        engine: Engine | None = None
        while (command := _exchange(None)) is not None:
            name, arguments = command
            if name == "load":
                engine = load()
                continue
            result = getattr(engine, name)(*arguments)
            if isinstance(result, Iterator):
                deque(result, maxlen=0)  # it runs as it is read


@contextmanager
def team(
    split: bool,
    device: torch.device,
    *,
    devices: Devices = DEVICES,
    join: Callable[..., Any] = distributed.init_process_group,
) -> Iterator[Team]:
    """The processes that torchrun started, joined if the teacher is to be ``split`` over them.

    Args:
        split: False for one process by itself.
        device: this process's own; it becomes the current one.
        devices: the machine's.
        join: makes the process group; called as :func:`torch.distributed.init_process_group` is.

    Raises:
        ConfigError: the teacher is to be split, and this process wasn't started by torchrun, or the device is
            another process's.
    """
    if not split:
        yield Team()
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise ConfigError("tensor_parallel splits the teacher over the processes that torchrun starts: start it so")
    if device.index is not None and device != local_device(device.type, devices):
        raise ConfigError(
            f"tensor_parallel gives each process a GPU of its own, and device {device} is one for all: "
            f"give --device {device.type}"
        )
    # Before anything is sent: NCCL sends objects from the current device, which is the first GPU until it is set.
    devices.make_current(device)
    joined = not distributed.is_initialized()
    if joined and device.type == "cuda":
        join("nccl", timeout=_PATIENCE, device_id=device)
    elif joined:
        join("gloo", timeout=_PATIENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        if joined:
            distributed.destroy_process_group()


def _exchange(command: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]] | None:
    """What the leader says, in every process; what followers give is ignored."""
    box = [command]
    distributed.broadcast_object_list(box)
    return box[0]


class _Leader(Engine):
    """An engine that tells the followers of each call first. A call's results must be read to the end."""

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
