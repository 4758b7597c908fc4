"""What the product makes of one tiny model, as teacher and as student, against the model's own rows one at a time.

Shape legend: L tokens of a row, N positions with targets, V words, K entries kept.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitcache as lc
from benchmarks._architectures_models import (
    CantBuildError,
    build,
    context_matters,
    load,
    looks_ahead,
    rounding,
    row_logits,
)
from logitcache.models.finding import find_head
from logitcache.models.head import without_adapter

#: Nats that other kernels for other shapes may change, in float32.
TOLERANCE = 5e-5
#: Deep recurrent models round more, but never as much as this.
MOST_ROUNDING = 1e-3
#: A model that looks ahead changes by more than this when what follows is cut off.
LOOKS_AHEAD = 1e-3
TOP_K = 16
PACKED = 96
USES = ("dump", "evaluate", "train", "packed", "saved")
# The directory that a message names.
MODEL = "DIR"
# What students are trained with: one loss that reads a few ids, and one that reads all.
LOSSES = ("bild", "forward_kl")


@dataclass
class Part:
    """How one use of the model came out.

    Attributes:
        outcome: ``right``, ``refused``, ``wrong`` (other numbers, or a traceback), or ``not tried``.
        says: the refusal's text, or what is wrong.
        off: the largest difference to the model's own rows, in nats; of a loss, relative to it where it is above one.
    """

    outcome: str = "not tried"
    says: str = ""
    off: float = 0.0


@dataclass
class Record:
    """One architecture's row of the table.

    Attributes:
        name: of the architecture.
        kind: its class in transformers.
        cant_build: why there is no such model here; empty if there is.
        alone: why transformers itself can't run it on text alone; empty if it can.
        ahead: nats by which its logits change when what follows is cut off.
        context: nats by which log-probs change with a token before.
        rounding: nats between a row in float32 and in float64; looked at where the dump is off by more than usual.
        way: ``fused``, ``dense`` (head as it is) or ``whole`` (through the model itself).
        dump, evaluate, train, packed, saved: the uses.
        seconds: all of it took.
    """

    name: str
    kind: str = ""
    cant_build: str = ""
    alone: str = ""
    ahead: float = 0.0
    context: float = 0.0
    rounding: float = 0.0
    way: str = ""
    dump: Part = field(default_factory=Part)
    evaluate: Part = field(default_factory=Part)
    train: Part = field(default_factory=Part)
    packed: Part = field(default_factory=Part)
    saved: Part = field(default_factory=Part)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """The inverse of :meth:`as_dict`."""
        parts: dict[str, Any] = {name: Part(**values[name]) for name in USES}
        return cls(**values | parts)


def check(name: str, work: Path, shared: Path) -> Record:
    """Build an architecture and try every use.

    Args:
        name: as ``architectures()`` gives it.
        work: an empty directory for this architecture alone.
        shared: what :func:`prepare` made.
    """
    record, started = Record(name), time.perf_counter()
    try:
        model = build(name, work / MODEL)
    except CantBuildError as error:
        record.cant_build = without_place(str(error))
    else:
        copy_files(shared / "tokenizer", work / MODEL)
        record.kind = type(model).__name__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _try_all(record, model, work, shared)
    record.seconds = round(time.perf_counter() - started, 2)
    return record


def _try_all(record: Record, model: Any, work: Path, shared: Path) -> None:
    cache = lc.open(shared / "cache")
    longest = max((sequence.token_ids for sequence in cache), key=len)
    try:
        record.ahead = looks_ahead(model, longest)
        record.context = context_matters(model, longest)
    except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the table
        record.alone = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    rows = [] if record.alone else [row_logits(model, sequence.token_ids) for sequence in cache]
    record.way = _way(model)
    with _outcome(record.dump, record):
        record.dump.off = _dump(model, work, shared)
        if record.dump.off > TOLERANCE:
            record.rounding = rounding(model, longest)
    # Students take the cache's tokenizer. Some model types read the file that all share in a way of their own.
    for path in (shared / "tokenizer").iterdir():
        (work / MODEL / path.name).unlink()
    with _outcome(record.evaluate, record):
        found = lc.evaluate(cache, work / MODEL).kl
        record.evaluate.off = _off(found, _kl(cache, rows))
    for part, settings in ((record.train, {}), (record.packed, {"pack_tokens": PACKED})):
        with _outcome(part, record):
            found = _first_loss(cache, work, settings)
            part.off = _off(found, _dense(cache, rows))
    if record.train.outcome == "right":
        with _outcome(record.saved, record):
            trained = load(work / "trained", type(model))
            again = [row_logits(trained, sequence.token_ids) for sequence in cache]
            record.saved.off = max(_largest(one - other) for one, other in zip(again, rows, strict=True))


@contextmanager
def _outcome(part: Part, record: Record) -> Iterator[None]:
    """Right within the tolerance, refused by one clear error, or wrong."""
    try:
        yield
    except lc.LogitCacheError as error:
        part.outcome, part.says = "refused", without_place(str(error))
        if (lines := len(part.says.splitlines())) > 2:
            part.outcome, part.says = "wrong", f"a refusal of {lines} lines: {part.says}"
    except Exception as error:  # noqa: BLE001  # that there is one is the finding
        part.outcome = "wrong"
        part.says = f"traceback: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    else:
        part.outcome = "right"
        if record.alone:
            part.outcome, part.says = "wrong", f"taken, though transformers can't run it on text ({record.alone})"
        elif record.ahead > LOOKS_AHEAD:
            part.outcome, part.says = (
                "wrong",
                f"taken, though what follows changes its logits by {record.ahead:.2g} nats",
            )
        elif not part.off <= max(TOLERANCE, min(record.rounding, MOST_ROUNDING)):
            part.outcome, part.says = "wrong", f"off by {part.off:.2g}"


def _dump(model: Any, work: Path, shared: Path) -> float:
    """Dump rows of unequal lengths in one batch; the largest difference to the model's own rows, in nats."""
    cache = lc.dump(
        teacher=str(work / MODEL),
        data=[str(shared / "rows.jsonl")],
        out=work / "cache",
        top_k=TOP_K,
        preset="exact",
        shard_format="arrow",
        max_length=64,
        batch_tokens=1024,
        min_mass=0.0,
    )
    off = 0.0
    for sequence in cache:
        own_NV = row_logits(model, sequence.token_ids)[sequence.positions].log_softmax(1)
        stored = sequence.targets
        outside_NV = own_NV.scatter(1, stored.ids, -torch.inf)
        differences = (
            own_NV.gather(1, stored.ids) - stored.logprobs,
            outside_NV.logsumexp(1) - stored.residual_logprob,
            (outside_NV.max(1).values - own_NV.gather(1, stored.ids).min(1).values).clamp(min=0),
        )
        off = max(off, *(_largest(difference) for difference in differences))
    return off


def _first_loss(cache: lc.Cache, work: Path, settings: dict[str, Any]) -> float:
    """The loss of the first step over the whole cache."""
    result = lc.train(
        cache=cache.root,
        student=work / MODEL,
        out=work / "-".join(["trained", *settings]),
        loss=",".join(f"{loss}=1.0" for loss in LOSSES),
        batch_size=len(cache),
        max_steps=1,
        learning_rate=1e-12,
        checkpoint_every=0,
        write_report=False,
        trainer={"use_cpu": True},
        **settings,
    )
    return float(next(entry["loss"] for entry in result.history if "loss" in entry))


def _dense(cache: lc.Cache, rows: list[Tensor]) -> float:
    """The mean loss from the model's own logits, one row at a time."""
    functions = [lc.losses.get(loss) for loss in LOSSES]
    total: list[Tensor] = []
    for logits_NV, targets, labels_N in _known(cache, rows):
        each = [function(logits_NV, targets, labels_N) for function in functions]
        total.append(torch.stack(each).double().sum(0))
    return float(torch.cat(total).mean())


def _kl(cache: lc.Cache, rows: list[Tensor]) -> float:
    """Mean KL of the rows to the cache in float64, what the cache doesn't list as one event."""
    total: list[Tensor] = []
    for logits_NV, targets, _ in _known(cache, rows):
        own_NV = logits_NV.double().log_softmax(1)
        listed_NK, left_N = targets.logprobs.double(), targets.residual_logprob.double()
        own_left_N = own_NV.scatter(1, targets.ids, -torch.inf).logsumexp(1)
        listed = listed_NK.exp() * (listed_NK - own_NV.gather(1, targets.ids))
        total.append(listed.sum(1) + left_N.exp() * (left_N - own_left_N))
    return float(torch.cat(total).mean())


def _known(cache: lc.Cache, rows: list[Tensor]) -> Iterator[tuple[Tensor, lc.TopK, Tensor]]:
    """Logits, targets and labels of each row where every id is known to teacher and student."""
    limit = min(rows[0].shape[1], cache.vocab_size) if rows else 0
    for row_LV, one in zip(rows, cache, strict=True):
        known_N = (one.targets.ids < limit).all(1)
        targets = replace(one.targets[known_N], vocab_size=limit)
        yield row_LV[one.positions][known_N, :limit], targets, one.labels[known_N]


def _off(found: float, wanted: float) -> float:
    return abs(found - wanted) / max(1.0, abs(wanted))


def _way(model: Any) -> str:
    try:
        head = find_head(without_adapter(model)[0])
    except lc.LogitCacheError:
        return ""
    if head.whole:
        return "whole"
    return "dense" if head.why_dense else "fused"


def without_place(text: str) -> str:
    """A message without the path of the sweep's own directory."""
    return re.sub(rf"[^\s(]*/{MODEL}\b", MODEL, text)


def _largest(difference: Tensor) -> float:
    """NaN counts as infinitely far."""
    return float(difference.abs().nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def copy_files(source: Path, target: Path) -> None:
    """The files of one directory into another."""
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
