"""Dry runs: the devices that they are for, and the estimate of memory and time that they print."""

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
        help="With --dry-run: plan for other devices than this machine's, such as 80GiB or 8x80GiB,400TFLOPS; "
        "no weights are read then.",
    ),
]


def described(text: str | None, *, dry_run: bool) -> Hardware | None:
    """The devices that an option names; None if it isn't given.

    Raises:
        ConfigError: they can't be read, or it is no dry run.
    """
    if text is None:
        return None
    if not dry_run:
        raise ConfigError("--hardware says what a plan is for: give --dry-run with it")
    return parse_hardware(text)


def estimate_lines(estimate: Estimate, what: str, count: int | None = None) -> Iterator[tuple[str, str]]:
    """Names and values of an estimate's lines.

    Args:
        estimate: of a dump or a training run.
        what: ``token`` or ``step``: what the operations are of.
        count: how many of them there are in all.
    """
    parts = ", ".join(f"{name} {gib(amount)}" for name, amount in estimate.memory.items())
    yield "device memory", f"{gib(estimate.total)}: {parts}"
    if estimate.fits is not None and estimate.device_memory is not None:
        room = f"{gib(estimate.device_memory)} on a device"
        yield "fits", f"yes, in {room}" if estimate.fits else f"no: a tenth more than the sum must be free, of {room}"
    for advice in estimate.advice:
        yield "what to change", advice
    yield "operations", f"{estimate.operations:.3g} FLOP per {what}"
    if estimate.rate is not None:
        told = f"at most {estimate.rate:,.3g} {what}s/s on {estimate.devices} device{'s' * (estimate.devices > 1)}"
        yield "rate", told if count is None else f"{told}, so at least {_time(count / estimate.rate)} in all"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
