"""The place in a stream, as plain values that can be saved and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logitcache.errors import ResumeMismatchError
from logitcache.stream.batches import Batch
from logitcache.stream.layout import Layout

STATE_VERSION = 1


@dataclass(frozen=True)
class Position:
    """A place in the stream.

    Attributes:
        epoch: from 0.
        samples_consumed: samples of the epoch in the finished steps.
        part: finished micro-batches of the next step; 0 between steps.
        turn: the DataLoader worker that gives the next batch.
    """

    epoch: int = 0
    samples_consumed: int = 0
    part: int = 0
    turn: int = 0

    @classmethod
    def after(cls, batch: Batch, turn: int) -> Position:
        """The place after a batch."""
        if batch.ends_step:
            return cls(batch.epoch, batch.samples_consumed, 0, turn)
        return cls(batch.epoch, batch.samples_before, batch.part + 1, turn)

    def state(self, order: dict[str, Any], digest: str, layout: Layout) -> dict[str, Any]:
        """Plain values; ``order`` and ``layout`` are saved so that :meth:`load` can refuse a state that doesn't fit."""
        return {
            "state_version": STATE_VERSION,
            "manifest_digest": digest,
            "epoch": self.epoch,
            "samples_consumed": self.samples_consumed,
            "order": order,
            "part": self.part,
            "turn": self.turn,
            "parts": _parts(layout),
        }

    @classmethod
    def load(cls, state: dict[str, Any], order: dict[str, Any], digest: str, layout: Layout) -> Position:
        """The place that :meth:`state` described.

        Raises:
            ResumeMismatchError: it is of another version, cache or order; or it is inside a step, and of other ranks.
        """
        version = state.get("state_version")
        if version != STATE_VERSION:
            raise ResumeMismatchError(f"the saved state has version {version}; this logitcache reads {STATE_VERSION}")
        if state["manifest_digest"] != digest:
            raise ResumeMismatchError(
                f"the cache has changed: the run was started on {state['manifest_digest']}, this one is {digest}"
            )
        for name, value in order.items():
            if state["order"].get(name) != value:
                raise ResumeMismatchError(
                    f"{name} was {state['order'].get(name)} when the run was started and is {value} now; "
                    "the samples would come in another order"
                )
        if state["part"] and state["parts"] != _parts(layout):
            raise ResumeMismatchError(
                "the state was saved inside a step: it can only continue with the same number of ranks, and batches "
                "and micro-batches of the same size, divided in the same way"
            )
        return cls(state["epoch"], state["samples_consumed"], state["part"], state["turn"])


def _parts(layout: Layout) -> list[int]:
    """What divides a step: ranks, micro-batches, the rows of both, and whether lengths decide."""
    return [layout.world_size, layout.parts, layout.batch_size, layout.micro_rows, int(layout.group_by_length)]
