"""What is known of a batch's labels before they go to a device, where to look at them would make the host wait."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """The least and the greatest of some labels, as they were when this was made.

    Attributes:
        labels: ``[N]`` int64.
        version: torch's count of changes of ``labels`` in place.
        least, greatest: of ``labels``; both 0 if there are none.
    """

    labels: Tensor
    version: int
    least: int
    greatest: int

    @classmethod
    def of(cls, labels: Tensor) -> KnownLabels:
        """Look at the labels. Those of a GPU are waited for."""
        return cls(labels, _version(labels), *_range(labels))

    def copied(self, labels: Tensor) -> KnownLabels:
        """The same for a copy of the labels, for example on another device."""
        return KnownLabels(labels, _version(labels), self.least, self.greatest)

    def hold_for(self, labels: Tensor) -> bool:
        """True if these are the labels, and nothing has changed them since."""
        if labels is not self.labels or _version(labels) != self.version:
            return False
        # torch doesn't count changes through numpy, which shares memory on a CPU only. To look again is fast there.
        return not is_at_hand(labels) or _range(labels) == (self.least, self.greatest)


def _range(labels: Tensor) -> tuple[int, int]:
    if not len(labels):
        return 0, 0
    if is_at_hand(labels):  # numpy takes a tenth of the time for a batch
        values_N = labels.detach().numpy()
        return int(values_N.min()), int(values_N.max())
    least, greatest = labels.aminmax()
    return int(least), int(greatest)


def is_at_hand(labels: Tensor) -> bool:
    """True on a CPU. (A subclass may have no values, as fake tensors do.)"""
    return type(labels) is Tensor and labels.device.type == "cpu"


def _version(labels: Tensor) -> int:
    return -1 if labels.is_inference() else labels._version  # inference mode doesn't count changes
