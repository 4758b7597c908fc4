"""Dry runs: the option for other devices, and the lines of the estimate of memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated

import typer

from logitcache.errors import ConfigError
from logitcache.models.cost import Estimate, gib
from logitcache.models.hardware import Hardware, parse_hardware

#: The option of `dump` and `train`.
HardwareOption = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICES",
        help="With --dry-run: plan for other devices, such as 80GiB or 8x80GiB,400TFLOPS. No weights are read.",
    ),
]


def described(text: str | None, *, dry_run: bool) -> Hardware | None:
    """The devices that an option names; None if it isn't given.

    Raises:
        ConfigError: the text can't be read, or it isn't a dry run.
    """
    if text is None:
        return None
    if not dry_run:
        raise ConfigError("--hardware is for a dry run: give --dry-run with it")
    return parse_hardware(text)


def estimate_lines(estimate: Estimate, what: str, count: int | None = None) -> Iterator[tuple[str, str]]:
    """Names and values of an estimate's lines.

    Args:
        estimate: of a dump or a training run.
        what: ``token`` or ``step``, the unit of the operations.
        count: the total number of tokens or steps.
    """
    parts = ", ".join(f"{name} {gib(amount)}" for name, amount in estimate.memory.items())
    yield "device memory", f"{gib(estimate.total)}: {parts}"
    if estimate.fits is not None and estimate.device_memory is not None:
        device = f"a device has {gib(estimate.device_memory)}"
        yield "fits", f"yes, {device}" if estimate.fits else f"no: {device}, and needs a tenth more than the sum"
    for advice in estimate.advice:
        yield "what to change", advice
    yield "operations", f"{estimate.operations:.3g} FLOP per {what}"
    if estimate.rate is not None:
        told = f"at most {estimate.rate:,.3g} {what}s/s on {estimate.devices} device{'s' * (estimate.devices > 1)}"
        yield "rate", told if count is None else f"{told}, so at least {_time(count / estimate.rate)} in total"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
