"""Copy targets from a device to the host while the device computes the next batch."""

from __future__ import annotations

from dataclasses import dataclass

from logitcache.targets.topk import TopK
from logitcache.utils.device import DEVICES, Devices, Event


@dataclass(eq=False)
class HostTopK:
    """A batch's targets during their copy; ``wait`` returns them.

    Attributes:
        targets: on the CPU, not to be read before ``wait``.
        event: comes when the copies have arrived; None if they have.
        source: what is copied, kept until then, so that its memory isn't used again before.
    """

    targets: TopK
    event: Event | None = None
    source: TopK | None = None

    def wait(self) -> TopK:
        """The targets, once the copies have arrived."""
        if self.event is not None:
            self.event.synchronize()
        self.event = self.source = None
        return self.targets


def to_host(targets: TopK, devices: Devices = DEVICES) -> HostTopK:
    """Start copying. The event belongs to the targets' own device, which need not be the current one."""
    copied = targets._map(devices.copy_to_host)
    return HostTopK(copied, devices.record(targets.ids.device), targets)
