"""`logitcache info`: what a cache holds and where it came from."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache
from logitcache.data import Tally
from logitcache.format.calibrate import Calibration
from logitcache.format.manifest import Manifest

from .common import console, print_json
from .text import printable

#: The manifest's setting that holds the counts of rows.
ROWS = "rows"


def info(
    cache: Annotated[str, typer.Argument(help="The cache: a directory, or a URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the manifest and derived figures.")] = False,
) -> None:
    """Show what a cache holds, where it came from and how exact it is."""
    opened = open_place(cache)
    if as_json:
        print_json(_summary(opened))
        return
    console.print(opened.digest, style="bold", highlight=False, soft_wrap=True)
    for title, rows in _sections(opened):
        console.print()
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=title, title_justify="left")
        table.title_style = "bold cyan"
        table.add_column(style="dim", min_width=14, no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(escape(printable(name)), escape(printable(value)))
        console.print(table, highlight=False)


def _summary(cache: Cache) -> dict[str, Any]:
    totals = cache.manifest.totals
    return {
        "digest": cache.digest,
        "path": cache.address,
        "bytes_per_token": totals.bytes / totals.tokens if totals.tokens else None,
        "max_error": cache.manifest.encoding.bound,
        "manifest": cache.manifest.model_dump(mode="json", exclude_none=True),
    }


def _sections(cache: Cache) -> list[tuple[str, dict[str, str]]]:
    manifest = cache.manifest
    sections = [("Content", _content(cache)), ("Teacher", _teacher(cache))]
    if (tally := recorded_tally(manifest)) is not None:
        sections.append(("Rows of the corpus", {"": "\n".join(tally.lines())}))
    if manifest.calibration is not None:
        sections.append(("Measured on the first shard", _measured(manifest.calibration)))
    card = manifest.card.model_dump(exclude_none=True)
    sections.append(("Card", card if card else {"": "none: the author of the cache gave no licence or purpose"}))
    return sections


def recorded_tally(manifest: Manifest) -> Tally | None:
    """Counts of the corpus's rows. None if the cache has none, such as a merged or imported cache."""
    recorded = manifest.provenance.settings.get(ROWS)
    return Tally.from_json(recorded) if isinstance(recorded, dict) and "read" in recorded else None


def _content(cache: Cache) -> dict[str, str]:
    manifest, totals = cache.manifest, cache.manifest.totals
    per_token = f", {totals.bytes / totals.tokens:.1f} per token" if totals.tokens else ""
    bound = manifest.encoding.bound
    exactness = f"log-probs within {bound:.6g} nat ({_fraction(bound)})" if bound else "log-probs kept as float32"
    rows = {
        "sequences": f"{totals.sequences:,} in {totals.shards:,} {manifest.shard_format} shards",
        "tokens": f"{totals.tokens:,}",
        "targets": f"{totals.targets:,} positions × {_entries(cache)} of {cache.vocab_size:,}",
        "shard bytes": f"{totals.bytes:,}{per_token}",
        "encoding": f"{manifest.encoding.preset}: {exactness}",
        "format": f"version {manifest.format_version}",
    }
    features = ", ".join((*manifest.reader_features, *manifest.writer_features))
    return rows | ({"features": features} if features else {})


def _entries(cache: Cache) -> str:
    origin = cache.manifest.provenance
    drawn = f" and {origin.tail_samples:,} drawn from the tail" if origin.tail_samples else ""
    liked = f" and {origin.candidates:,} candidates of a reference" if origin.candidates else ""
    return f"top {cache.ranked:,}{drawn}{liked}"


def _fraction(bound: float) -> str:
    return f"1/{round(1 / bound)}" if bound < 1 else f"{bound:g}"


def _teacher(cache: Cache) -> dict[str, str]:
    origin = cache.manifest.provenance
    teacher = origin.teacher
    logits = f", logits in {teacher.head_dtype}," if teacher.head_dtype else ""
    rows = {
        "name": teacher.name,
        "revision": teacher.revision,
        "weights": _short(teacher.weights_digest),
        "ran in": f"{teacher.dtype}{logits} on {teacher.engine}",
        "tokenizer": _short(origin.tokenizer_digest),
        "corpus": _short(origin.corpus_digest),
        "positions": origin.positions,
        "max length": f"{origin.max_length:,}" if origin.max_length else None,
        "made from": ", ".join(filter(None, map(_short, origin.parents))) or None,
        **{name: str(value) for name, value in origin.settings.items() if name != ROWS},
        "software": ", ".join(f"{name} {version}" for name, version in sorted(origin.software.items())) or None,
    }
    return {name: value for name, value in rows.items() if value is not None}


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[: len("sha256:") + 16] + "…"


def _measured(measured: Calibration) -> dict[str, str]:
    ranks = {"–".join(map(str, sorted({part.first, part.last}))): part.mean for part in measured.by_rank}
    mass = [f"mean {measured.mass_mean:.3f}"]
    least = [(percent, measured.mass_percentiles.get(percent)) for percent in ("1", "10", "50")]
    mass += [f"under {value:.3f} at {percent} % of positions" for percent, value in least if value is not None]
    parts = sorted(measured.parts.items(), key=lambda part: -part[1])
    return {
        "targets": f"{measured.targets:,} of {measured.tokens:,} tokens",
        "log-prob error": f"{measured.max_error:.4f} nat at most, mean {measured.mean_error:.4f}",
        "mean by rank": ", ".join(f"{rank}: {mean:.4f}" for rank, mean in ranks.items()),
        "residual error": f"{measured.residual_max_error:.4f} nat at most, mean {measured.residual_mean_error:.4f}",
        "top-k mass": ", ".join(mass),
        "bytes per token": f"{measured.bytes_per_token:.1f}: "
        + ", ".join(f"{name} {size:.1f}" for name, size in parts if size >= 0.05),
    }
