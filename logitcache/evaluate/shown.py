"""How metrics are shown, in reports and by the commands: their titles, their digits, and which values are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """One metric.

    Attributes:
        key: its name in ``Metrics.flat()``.
        title: what tables and plots call it, with its unit.
        form: how a value is written.
        less_is_better: True if a smaller value is better.
    """

    key: str
    title: str
    form: str
    less_is_better: bool

    def text(self, value: float) -> str:
        return self.form.format(value)

    def best(self, values: Sequence[float]) -> float:
        return min(values) if self.less_is_better else max(values)


SHOWN = (
    Shown("kl", "KL(teacher ‖ student), nats", "{:.4f}", True),
    Shown("cross_entropy", "cross-entropy, nats", "{:.4f}", True),
    Shown("perplexity", "perplexity", "{:,.2f}", True),
    Shown("top1_agreement", "top-1 agreement", "{:.1%}", False),
    Shown("overlap@8", "overlap@8", "{:.1%}", False),
    Shown("overlap@32", "overlap@32", "{:.1%}", False),
    Shown("s_ld_coverage", "s-LD coverage", "{:.1%}", False),
)
