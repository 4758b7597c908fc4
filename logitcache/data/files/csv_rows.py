"""Read rows of CSV and TSV files: cells separated by comma or tab, column names in the first line.

Such a file has no types, so every cell stays text. A guess could turn a text of digits into a number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from logitcache.data.files.sources import Row
from logitcache.data.files.utf8 import read_lines
from logitcache.errors import DataError

#: A quote that is never closed makes the rest of the file one cell. A cell longer than this is an error.
_LONGEST_CELL = 1 << 26


def read_csv(file: io.BufferedReader, name: str, delimiter: str) -> Iterator[Row]:
    """Read rows: each cell's text by column name. An empty cell is None. Cells in quotes may contain newlines.

    Raises:
        DataError: a line isn't UTF-8, has more or fewer cells than the first, or a quote is out of place.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    reader = csv.reader((line for _, line in read_lines(file, name)), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if columns is None:
                columns = _header(cells, name)
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{name} line {reader.line_num} has {len(cells)} cells; the first line names {len(columns)} columns"
                )
            yield {column: cell or None for column, cell in zip(columns, cells, strict=True)}
    except csv.Error as error:
        reason = str(error).split(" - ")[0]
        raise DataError(f"{name} line {reader.line_num} can't be read as a table: {reason}") from error


def _header(cells: list[str], name: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise DataError(f"{name}: two columns are named {twice[0]!r}; the first line must name each column once")
    return cells
