"""Which of a position's entries are not its most probable ids: a sample of the tail, or a reference's candidates."""

from __future__ import annotations

from dataclasses import dataclass

from logitcache.errors import TargetsError


@dataclass(frozen=True)
class Beyond:
    """The last entries of each position, where they were not chosen by rank. At most one of the numbers is above 0.

    Attributes:
        tail_samples: entries that were drawn from all ids below the ranked ones (``logitcache.targets.tail_sample``).
        candidates: entries that a reference student likes best of those ids (``logitcache.targets.candidates``).
    """

    tail_samples: int = 0
    candidates: int = 0

    @property
    def count(self) -> int:
        """How many entries they are."""
        return self.tail_samples + self.candidates

    def recorded(self) -> dict[str, int]:
        """The numbers above 0 by name, as headers and manifests store them."""
        return {name: count for name, count in vars(self).items() if count}

    def check(self, k: int) -> None:
        """Raise ``TargetsError`` unless so many of k entries can stand beyond the ranked ones."""
        for name, count in vars(self).items():
            if not 0 <= count < k:
                raise TargetsError(f"{name} {count} of K = {k} entries; it must be from 0 to {k - 1}")
        if self.tail_samples and self.candidates:
            raise TargetsError(
                f"{self.tail_samples} tail samples and {self.candidates} candidates: a row holds one or the other"
            )


#: Every entry is one of the most probable ids.
ALL_RANKED = Beyond()
