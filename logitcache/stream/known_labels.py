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
        least, greatest = (int(value) for value in labels.aminmax()) if len(labels) else (0, 0)
        return cls(labels, _version(labels), least, greatest)

    def copied(self, labels: Tensor) -> KnownLabels:
        """The same for a copy of the labels, for example on another device."""
        return KnownLabels(labels, _version(labels), self.least, self.greatest)

    def hold_for(self, labels: Tensor) -> bool:
        """True if these are the labels, and nothing has changed them since."""
        return labels is self.labels and _version(labels) == self.version


def _version(labels: Tensor) -> int:
    return -1 if labels.is_inference() else labels._version  # inference mode doesn't count changes
