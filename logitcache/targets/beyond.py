"""Entries from beyond the top: a sample of the tail, or candidates, chosen by a reference model."""

from __future__ import annotations

from dataclasses import dataclass

from logitcache.errors import TargetsError


@dataclass(frozen=True)
class Beyond:
    """How many entries of each position, the last ones, were not chosen by rank. At most one of the numbers is above 0.

    Attributes:
        tail_samples: entries that were drawn from all ids below the ranked ones (``logitcache.targets.tail_sample``).
        candidates: those of these ids that have the largest logits in a reference model
            (``logitcache.targets.candidates``).
    """

    tail_samples: int = 0
    candidates: int = 0

    @property
    def count(self) -> int:
        """How many entries were not chosen by rank."""
        return self.tail_samples + self.candidates

    def recorded(self) -> dict[str, int]:
        """The numbers above 0, by name, as headers and manifests store them."""
        return {name: count for name, count in vars(self).items() if count}

    def check(self, k: int) -> None:
        """Check the numbers for rows of k entries.

        Raises:
            TargetsError: a number is below 0 or not below k, or both are above 0.
        """
        for name, count in vars(self).items():
            if not 0 <= count < k:
                raise TargetsError(f"{name} {count} of K = {k} entries; it must be from 0 to {k - 1}")
        if self.tail_samples and self.candidates:
            raise TargetsError(
                f"{self.tail_samples} tail samples and {self.candidates} candidates: a row holds one or the other"
            )


#: Every entry is one of the most probable ids.
ALL_RANKED = Beyond()
