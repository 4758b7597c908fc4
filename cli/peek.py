"""`logitcache peek`: show a sequence with the teacher's predictions for each of its tokens.

Shape legend: M positions of a sequence that have targets, K entries per position.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache
from logitcache.cache.sequence import CachedSequence
from logitcache.errors import ConfigError

from .common import console, print_json
from .text import passage, printable

DEFAULT_TOKENS = 24
TOKEN_WIDTH = 14
#: Least probability of the next token, its colour, and the mark that shows the level without colour.
LEVELS = ((0.5, "green", " "), (0.1, "yellow", " "), (0.01, "dark_orange", "!"), (0.0, "bold red", "‼"))
#: Characters that would break a line or be invisible.
VISIBLE = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "·"})


@dataclass(frozen=True)
class Candidate:
    """One of the teacher's predictions."""

    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the teacher predicted at a position, and the token that is really next.

    Attributes:
        probability: the teacher's probability of the next token; None if it isn't among the top K.
        rank: the rank of the next token in the teacher's list, from 1; None if it isn't among the top K.
        residual: probability of all tokens outside the top K.
    """

    probability: float | None
    rank: int | None
    residual: float
    candidates: list[Candidate]


@dataclass(frozen=True)
class Row:
    """A token of the sequence and, if its predecessor has targets, how the teacher predicted it."""

    position: int
    token_id: int
    token: str
    predicted: Prediction | None


def peek(
    cache: Annotated[str, typer.Argument(help="The cache: a directory, or a URL.")],
    sequence: Annotated[int, typer.Argument(help="Number of the sequence, from 0.", min=0)] = 0,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="A:B", help=f"Tokens to show, such as 100:150. Default: the first {DEFAULT_TOKENS}."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the teacher's predictions to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a sequence with the teacher's predictions. Colours show the teacher's probability of each token."""
    opened = open_place(cache)
    if sequence >= len(opened):
        raise ConfigError(f"there is no sequence {sequence}: {cache} has {len(opened):,}, numbered from 0")
    found = opened[sequence]
    span = _span(tokens, len(found))
    rows = _rows(opened, found, span, top)
    if as_json:
        head = {"sequence": sequence, "digest": found.digest, "tokens": len(found), "targets": len(found.targets)}
        print_json(head | {"rows": [asdict(row) for row in rows]})
        return
    _print(opened, sequence, found, rows)


def _span(text: str | None, length: int) -> range:
    if text is None:
        return range(min(DEFAULT_TOKENS, length))
    match = re.fullmatch(r"(-?\d*):(-?\d*)", text)
    if match is None or "-" in match.groups():
        raise ConfigError(f"--tokens {text!r}: write the first token and the end as A:B, such as 100:150")
    bounds = slice(*(int(part) if part else None for part in match.groups()))
    span = range(*bounds.indices(length))
    if not span:
        raise ConfigError(f"--tokens {text!r} selects nothing of a sequence of {length:,} tokens")
    return span


def _rows(cache: Cache, sequence: CachedSequence, span: range, top: int) -> list[Row]:
    tokenizer = cache.load_tokenizer() if cache.manifest.tokenizer else None

    def name(token_id: int) -> str:
        return str(token_id) if tokenizer is None else str(tokenizer.decode([token_id]))

    row_of = {int(position): row for row, position in enumerate(sequence.positions)}
    rows = []
    for position in span:
        token_id = int(sequence.token_ids[position])
        target = row_of.get(position - 1)
        predicted = None if target is None else _prediction(sequence, target, token_id, top, name)
        rows.append(Row(position, token_id, name(token_id), predicted))
    return rows


def _prediction(sequence: CachedSequence, row: int, token_id: int, top: int, name: Any) -> Prediction:
    targets = sequence.targets
    probabilities_K = targets.logprobs[row].exp().tolist()
    ids_K = targets.ids[row].tolist()
    rank = ids_K.index(token_id) if token_id in ids_K else None
    pairs = list(zip(ids_K, probabilities_K, strict=True))[:top]
    return Prediction(
        probability=None if rank is None else probabilities_K[rank],
        rank=None if rank is None else rank + 1,
        residual=math.exp(float(targets.residual_logprob[row])),
        candidates=[Candidate(candidate, name(candidate), probability) for candidate, probability in pairs],
    )


def _print(cache: Cache, index: int, sequence: CachedSequence, rows: list[Row]) -> None:
    span = f"tokens {rows[0].position:,} to {rows[-1].position + 1:,} of {len(sequence):,}" if rows else "no tokens"
    teacher = printable(cache.manifest.provenance.teacher.name)
    targets = f"{len(sequence.targets):,} targets (in ⟦⟧) of {teacher}"
    console.print(Text.assemble((f"Sequence {index:,}", "bold"), f" of {len(cache):,}: {span}, {targets}"))
    if not rows:
        return
    console.print(_passage(rows))
    console.print()
    console.print(_table(rows))
    console.print(_legend())


def _level(predicted: Prediction | None) -> tuple[str, str]:
    if predicted is None:
        return "dim", " "
    probability = predicted.probability or 0.0
    return next((colour, mark) for least, colour, mark in LEVELS if probability >= least)


def _passage(rows: list[Row]) -> Text:
    return passage((row.token, _level(row.predicted)[0], row.predicted is not None) for row in rows)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    digits = len(str(rows[-1].position))
    widths = {"at": max(2, digits), "token": TOKEN_WIDTH, "": 1, "p": 4, "rank": 4}
    for name, width in widths.items():
        numeric = name in ("at", "p", "rank")
        table.add_column(name, width=width, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    # The space that is left on the line. A column's width doesn't count the space after it, also for the last one.
    left = max(24, console.width - sum(widths.values()) - len(widths) - 1)
    table.add_column("the teacher expected", width=left, no_wrap=True, overflow="ellipsis")
    for row in rows:
        colour, mark = _level(row.predicted)
        token = Text(_visible(row.token), colour)
        if row.predicted is None:
            table.add_row(Text(f"{row.position}", "dim"), token, "", "–", "–", Text("no target", "dim"))
            continue
        table.add_row(
            Text(f"{row.position}", "dim"),
            token,
            Text(mark, colour),
            Text(_percent(row.predicted.probability), colour),
            "–" if row.predicted.rank is None else f"{row.predicted.rank}",
            _candidates(row, left),
        )
    return table


def _candidates(row: Row, width: int) -> Text:
    """The first candidates, as many as fit on the line."""
    assert row.predicted is not None
    text = Text()
    for candidate in row.predicted.candidates:
        is_next = candidate.token_id == row.token_id
        shown = f"{_visible(candidate.token)} {_percent(candidate.probability)}"
        part = Text(f"[{shown}]" if is_next else shown, "bold" if is_next else "")
        if text and text.cell_len + 2 + part.cell_len > width:
            break
        text = Text.assemble(text, "  " if text else "", part)
    return text


def _visible(token: str) -> str:
    return printable(token.translate(VISIBLE))


def _percent(probability: float | None) -> str:
    if probability is None:
        return "rest"
    if probability >= 0.9995:
        return "100%"
    return f"{100 * probability:.0f}%" if probability >= 0.1 else f"{100 * probability:.1f}%"


def _legend() -> Text:
    text = Text("p of the next token: ", "dim")
    for (_, colour, mark), label in zip(LEVELS, ("50%", "10%", "1%", "less"), strict=True):
        text.append(f"{label} {mark}".strip() + "  ", colour)
    text.append("[next]  rest: not in the top K", "dim")
    return text
