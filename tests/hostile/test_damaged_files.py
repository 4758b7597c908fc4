"""Cut and damaged input files give an error of one line, or rows that the file's format can't recognise as damaged."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import COMPRESSORS, cells, json_array, json_lines, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcache.data import find_sources, read_rows
from logitcache.errors import DataError

pytestmark = pytest.mark.hostile

Rows = list[dict[str, Any]]
ROWS: Rows = [{"text": f"line {i}, né", "messages": [{"role": "user", "content": "x" * i}]} for i in range(12)]


def read(path: Path) -> Rows | None:
    """The rows; None for an error, which must be of one line."""
    try:
        return [row for source in find_sources([str(path)]) for row in read_rows(source)]
    except DataError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None


def refused(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        [list(read_rows(source)) for source in find_sources([str(path)])]


@functools.cache
def contents() -> dict[str, bytes]:
    """Small files by name; those of several members or batches end one of them in the middle of the rows."""
    lines, half = json_lines(ROWS), len(json_lines(ROWS[:6]))
    tags = pa.array([[("k", "v"), ("l", None)]] * len(ROWS), pa.map_(pa.string(), pa.string()))
    table = pa.Table.from_pylist(ROWS).append_column("tags", tags)
    files = {"x.json": json_array(ROWS), "object.json": b'{"v": 1, "data": ' + json_array(ROWS) + b"}"}
    for suffix, compress in COMPRESSORS.items():
        files[f"x.jsonl{suffix}"] = compress(lines[:half]) + compress(lines[half:])
        files[f"x.txt{suffix}"] = compress(b"Some text that is cut. " * 30)
    for name, new in (("x.arrow", pa.ipc.new_file), ("x.ipc", pa.ipc.new_stream)):
        sink = io.BytesIO()
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=6)
        files[name] = sink.getvalue()
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=6, compression="zstd")
    return files | {"x.parquet": sink.getvalue()}


NAMES = [*(f"x.{kind}{suffix}" for kind in ("jsonl", "txt") for suffix in COMPRESSORS), "x.json", "object.json"]


@pytest.mark.filterwarnings("ignore::logitcache.errors.LogitCacheWarning")
@pytest.mark.parametrize("name", [*NAMES, "x.parquet", "x.arrow", "x.ipc"])
def test_cut_at_any_byte(tmp_path: Path, name: str) -> None:
    content = contents()[name]
    taken = []
    for size in range(len(content)):
        (tmp_path / name).write_bytes(content[:size])
        if (rows := read(tmp_path / name)) is not None:
            taken.append(rows)
    # A file that ends between two members is complete.
    assert taken == ([ROWS[:6]] if name.startswith("x.jsonl.") else [])
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name)


@pytest.mark.filterwarnings("ignore::logitcache.errors.LogitCacheWarning")
@pytest.mark.parametrize("name", [*NAMES, "x.parquet", "x.arrow", "x.ipc"])
def test_any_byte_changed(tmp_path: Path, name: str) -> None:
    content = contents()[name]

    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.integers(0, len(content) - 1), change=st.integers(1, 255))
    def check(at: int, change: int) -> None:
        path = tmp_path / name
        path.unlink(missing_ok=True)  # a mapped file must not change under Arrow
        path.write_bytes(content[:at] + bytes([content[at] ^ change]) + content[at + 1 :])
        rows = read(path)
        if name.endswith((".gz", ".bz2", ".xz")) and rows is not None:
            path.write_bytes(content)
            assert rows == read(path)  # these have checksums

    check()


@pytest.mark.parametrize("suffix", sorted(COMPRESSORS))
def test_what_follows_the_compressed_data(tmp_path: Path, suffix: str) -> None:
    content = COMPRESSORS[suffix](json_lines(ROWS))
    refused(tmp_path / f"x.jsonl{suffix}", content + b"and more", "can't be read as JSON lines, or is cut")


def test_lines_that_are_cut(tmp_path: Path) -> None:
    lines = json_lines(ROWS)
    refused(tmp_path / "x.jsonl", lines[:-5], "line 12 is not valid JSON: .* The file ends here; it may be cut")
    refused(tmp_path / "x.json", lines[:-5], "line 12 can't be read as rows of JSON")
    (tmp_path / "x.jsonl").write_bytes(lines[:-1])
    assert read(tmp_path / "x.jsonl") == ROWS
    table = cells([{"a": "1", "b": 'quoted, "text"'}], ",")
    refused(tmp_path / "x.csv", table[:-6], "line 2 can't be read as a table: unexpected end of data")


def test_a_saved_data_set_that_is_cut(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "set")
    (part,) = (tmp_path / "set").glob("*.arrow")
    content = part.read_bytes()
    for size in (len(content) - 8, len(content) // 2, 0):
        part.unlink()
        part.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"arrow has no Arrow end mark: it is cut"):
            list(read_rows(*find_sources([str(tmp_path / "set")])))


PARQUET = b"PAR1\x15\x04\x15\x00"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.txt", COMPRESSORS[".gz"](b"a"), "holds gzip data; add .gz to its name"),
        ("x.jsonl", COMPRESSORS[".zst"](b"a"), "holds zstd data; add .zst to its name"),
        ("x.txt", COMPRESSORS[".bz2"](b""), "holds bz2 data"),
        ("x.txt.gz", b"plain text", "holds no gzip data; its name says .gz"),
        ("x.txt.xz", b"", "holds no xz data"),
        ("x.txt.lz4", COMPRESSORS[".gz"](b"a"), "holds no lz4 data"),
        ("x.txt", PARQUET, "is a Parquet file; use --data-kind parquet"),
        ("x.jsonl.gz", COMPRESSORS[".gz"](PARQUET), "line 1 is not text: NUL"),
        ("x.csv", b"ARROW1\x00\x00", "is an Arrow file; use --data-kind arrow"),
        ("x.txt", b"PK\x03\x04\x00", "is a zip archive; unpack it first"),
        ("x.parquet", b"a line of text\n", "can't be read as Parquet, or is cut"),
        ("x.arrow", b"a line of text\n", "has no Arrow end mark"),
        ("x.parquet.gz", b"", "can't be read while it is compressed as a whole; unpack it first"),
        ("x.jsonl", b'[\n{"a": 1}\n]', "If the file is one array, use --data-kind json"),
        ("x.jsonl", b'[{"a": 1}]', "line 1 is list; each line must be an object. If the file is one array"),
        ("x.jsonl", b'{\n"a": 1\n}', "If an object takes several lines, use --data-kind json"),
        ("x.txt", "é".encode("utf-16"), "is UTF-16 or UTF-32 text; convert it to UTF-8"),
        ("x.txt", "one é".encode("utf-16-le"), r"NUL at byte 2 \(binary data, or UTF-16\)"),
        ("x.txt", b"one\ntwo\ncaf\xe9", "is not UTF-8 text: 0xe9 at line 3, byte 4. Convert it"),
        ("x.txt", b"one\nt\x00o", "is not text: NUL at line 2, byte 2"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "line 2 is not UTF-8 text: 0xe9 at byte 8"),
        ("x.json", b'[{"a": "\xe9"}]', "is not UTF-8 text: 0xe9 at byte 9"),
        ("x.json", b'[{"a": "' + b"x" * (1 << 20) + b'\xe9"}]', f"0xe9 at byte {(1 << 20) + 9}"),
        ("x.json", b'[{"a": "x\xc3', "is not UTF-8 text: 0xc3 at byte 10"),
        ("x.csv", b"a,b\n1,\xe9\n", "line 2 is not UTF-8 text"),
        ("x.jsonl", b"[" * 200_000, "nested too deep"),
        ("x.json", b'{"a": ' + b"[" * 200_000, "nested too deep"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        ("x.json", b"", "is empty; rows must be JSON objects"),
        ("x.json", b"3", "begins with '3'; rows must be JSON objects"),
        ("x.json", b"[1, 2]", "found '1' where an object should begin"),
        ("x.json", b'[{"a": 1}\n{"a": 2}]', "line 2 can't be read as rows of JSON: found '{'"),
        ("x.json", b'[{"a": 1},]', "found ']' where an object should begin"),
        ("x.json", b'[{"a": 1}] []', r"found '\[' after the end of the array"),
        ("x.json", b'{"a": 1}\n{"a": tru}\n{"a": 2}', "line 2 can't be read as rows of JSON: Expecting value"),
        ("x.json", b'{"a": 1}, {"a": 2}', "found ',' where an object should begin"),
        ("x.csv", b"a,b\n1\n", "line 2 has 1 cells; the first line names 2 columns"),
        ("x.csv", b"a,a\n1,2\n", "two columns are named 'a'"),
        ("x.csv", b'a,b\n1,"x"y\n', "line 2 can't be read as a table"),
        ("x.csv", b"a,b\r1,2\r", "line 1 can't be read as a table: new-line character"),
        ("x.tsv", b'a\n"' + b"x" * (1 << 26) + b"\n\n", "field larger than field limit"),
    ],
)
def test_other_than_the_name_says(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    refused(tmp_path / name, content, match)


def test_a_closed_file_or_directory(tmp_path: Path) -> None:
    write(ROWS, tmp_path / "x.jsonl")
    source = find_sources([str(tmp_path / "x.jsonl")])[0]
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(DataError, match=r"can't read .*x\.jsonl: No such file"):
        list(read_rows(source))
    with pytest.raises(DataError, match="File name too long"):
        find_sources(["x" * 5000])
    with pytest.raises(DataError, match="is neither a file nor a directory"):
        find_sources(["/dev/null"])
