"""Files of every kind and compression give the same rows; names and types that can't be read are refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import COMPRESSORS, WRITERS, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcache.data import find_sources, read_rows
from logitcache.data.files.dataset_rows import read_hub
from logitcache.data.files.sources import HubId, parse_hub_id
from logitcache.errors import ConfigError, DataError, LogitCacheWarning

ROWS = [{"text": f"line {i}, né à Łódź", "number": i} for i in range(2500)]


def rows_of(*data: str | Path, kind: str | None = None, split: str = "train") -> list[dict[str, Any]]:
    return [row for source in find_sources([str(name) for name in data], kind) for row in read_rows(source, split)]


# Every kind


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_every_kind_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    write(ROWS, tmp_path / f"rows{suffix}")
    as_text = suffix.startswith((".csv", ".tsv"))
    assert rows_of(tmp_path / f"rows{suffix}") == (
        [{"text": row["text"], "number": str(row["number"])} for row in ROWS] if as_text else ROWS
    )


words = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from('",\n\r\t\\[]{}'), max_size=20)
messages = st.lists(st.fixed_dictionaries({"role": words, "content": words}), max_size=3)
tables = st.lists(
    st.fixed_dictionaries(
        {"text": st.none() | words, "ids": st.lists(st.integers(0, 2**40), max_size=4), "messages": messages}
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=tables, compressor=st.sampled_from(sorted(COMPRESSORS)), parts=st.integers(1, 3))
def test_any_table_reads_back(tmp_path: Path, rows: list[dict[str, Any]], compressor: str, parts: int) -> None:
    flat = [{"text": row["text"] or None, "x": row["messages"][0]["role"] or None if row["messages"] else None}
            for row in rows]  # fmt: skip
    for suffix in WRITERS:
        is_table = suffix in (".csv", ".tsv")
        for end in ("", compressor if suffix in (".jsonl", ".json", ".csv", ".tsv") else ""):
            path = tmp_path / f"rows{suffix}{end}"
            expected = flat if is_table else rows
            write(expected, path, parts)
            assert rows_of(path) == expected, path.name


@pytest.mark.parametrize("compressor", sorted(COMPRESSORS))
def test_documents_may_be_compressed_in_parts(tmp_path: Path, compressor: str) -> None:
    path = tmp_path / f"book.txt{compressor}"
    path.write_bytes(COMPRESSORS[compressor](b"\xef\xbb\xbfone ") + COMPRESSORS[compressor]("två".encode()))
    assert rows_of(path) == [{"text": "one två"}]


def test_text_is_one_document_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"\ufeffI am {name}.\n\nSecond paragraph.", encoding="utf-8")
    texts = [row["text"] for row in rows_of(tmp_path / "*.txt", tmp_path / "c.md")]
    assert [text.split()[2] for text in texts] == ["a.txt.", "b.txt.", "c.md."]
    assert texts[0] == "I am a.txt.\n\nSecond paragraph."


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('[{"a": 1}, {"a": 2}]', 2),
        ("[]", 0),
        ('\ufeff[\n  {"a": "[{\\"]}"},\n {"a": 2}\n]\n\n', 2),
        ('{"a": 1}\n{"a": 2}', 2),
        ('{"a": 1}\n\n{"a": 2}\n{\n "a": [3]\n}\n', 3),
        ('{"text": "one row", "tags": ["x"]}', 1),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "y"}]}', 1),
        ('{"conversations": [{"from": "human", "value": "x"}]}', 1),
    ],
)
def test_json_is_read_by_its_content(tmp_path: Path, content: str, rows: int) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    found = rows_of(tmp_path / "x.json")
    assert len(found) == rows
    assert found == [] or all(isinstance(row, dict) and row for row in found)


def test_json_rows_inside_one_object_give_a_warning(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"version": "1.1", "data": [{"text": "a"}, {"text": "b"}]}))
    with pytest.warns(LogitCacheWarning, match="rows are those of the list 'data'"):
        assert rows_of(tmp_path / "x.json") == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "y.json").write_text(json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]}))
    with pytest.raises(DataError, match=r"several lists of objects \(train, test\)"):
        rows_of(tmp_path / "y.json")


def test_json_values_longer_than_a_piece(tmp_path: Path) -> None:
    rows = [
        {"text": "\\u00e9é\U0001f600" * 400_000, "n": [1.5e-3, True, None]},
        {"text": "short"},
        {"text": "x" * (1 << 20)},
    ]
    for ascii_only in (True, False):
        (tmp_path / "x.json").write_text(json.dumps(rows, ensure_ascii=ascii_only), encoding="utf-8")
        assert rows_of(tmp_path / "x.json") == rows


def test_cells_of_tables_stay_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbftext,n\r\n"a\r\nb, ""q""",1.50\r\n\r\n007,\r\n')
    assert rows_of(tmp_path / "x.csv") == [{"text": 'a\r\nb, "q"', "n": "1.50"}, {"text": "007", "n": None}]
    (tmp_path / "x.tsv").write_text("text\tn\na, b\t2\n" + "long " * 100_000 + "\t3\n")
    assert [len(row["text"]) for row in rows_of(tmp_path / "x.tsv")] == [4, 500_000]


# Arrow's types

IDS = [[1, 2], None, [3, 4]]
TYPES = {
    "large_string": (pa.array(["a", None, "é"], pa.large_string()), ["a", None, "é"]),
    "string_view": (pa.array(["a", None, "é"], pa.string_view()), ["a", None, "é"]),
    "dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "binary": (pa.array([b"a", None, "é".encode()], pa.binary()), ["a", None, "é"]),
    "large_binary": (pa.array([b"a", None, b"\xff\xd8"], pa.large_binary()), ["a", None, b"\xff\xd8"]),
    "binary_view": (pa.array([b"a", None, b"\xff"], pa.binary_view()), ["a", None, b"\xff"]),
    "fixed_binary": (pa.array([b"ab", None, "é".encode()], pa.binary(2)), ["ab", None, "é"]),
    "binary_dictionary": (pa.array([b"a", None, b"a"]).dictionary_encode(), ["a", None, "a"]),
    "list": (pa.array(IDS, pa.list_(pa.uint8())), IDS),
    "large_list": (pa.array(IDS, pa.large_list(pa.uint64())), IDS),
    "list_view": (pa.array(IDS, pa.list_view(pa.int16())), IDS),
    "fixed_list": (pa.array(IDS, pa.list_(pa.int32(), 2)), IDS),
    "map": (pa.array([[("k", b"v")], None, []], pa.map_(pa.string(), pa.binary())), [{"k": "v"}, None, {}]),
    "messages": (
        pa.array(
            [[{"role": b"user", "tags": [b"x", b"\xff"]}], None, [{"role": None, "tags": None}]],
            pa.list_(pa.struct([("role", pa.binary()), ("tags", pa.list_(pa.binary()))])),
        ),
        [[{"role": "user", "tags": ["x", b"\xff"]}], None, [{"role": None, "tags": None}]],
    ),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None, "1"])), ["{}", None, "1"]),
    "date": (pa.array([0, None, 1], pa.date32()), [datetime.date(1970, 1, 1), None, datetime.date(1970, 1, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", [".parquet", ".arrow", ".ipc"])
def test_arrow_types_become_plain_values(tmp_path: Path, kind: str) -> None:
    table = pa.table({name: column for name, (column, _) in TYPES.items()})
    WRITERS[kind](table, tmp_path / f"x{kind}")
    rows = rows_of(tmp_path / f"x{kind}")
    for name, (_, expected) in TYPES.items():
        values = [row[name] for row in rows]
        assert values == expected, name
        assert repr(values) == repr(expected), name  # a NumPy integer would equal the plain one


def test_columns_that_cannot_be_converted_name_the_row(tmp_path: Path) -> None:
    offsets = pa.array(range(1501), pa.int32()).buffers()[1]
    letters = bytearray(b"x" * 1500)
    letters[1300] = 0xFF
    broken = pa.Array.from_buffers(pa.string(), 1500, [None, offsets, pa.py_buffer(bytes(letters))])
    pq.write_table(pa.table({"text": broken}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'text' in row 1301 can't be taken: Invalid UTF8"):
        rows_of(tmp_path / "x.parquet")
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="two columns are named 'a'"):
        rows_of(tmp_path / "x.parquet")


# Names


@pytest.mark.parametrize("name", ["corpus.dat", "README", "x.json.foo", "corpus.gz", "x.tar.gz", "x.zip"])
def test_unknown_names_ask_for_the_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "a"}\n')
    with pytest.raises(DataError, match=r"say it with --data-kind text\|jsonl\|json"):
        find_sources([str(tmp_path / name)])


def test_the_given_kind_overrides_the_name(tmp_path: Path) -> None:
    (tmp_path / "corpus.dat").write_bytes(b'{"text": "a"}\n')
    (tmp_path / "rows.gz").write_bytes(COMPRESSORS[".gz"](b'{"text": "b"}\n'))
    assert rows_of(tmp_path / "corpus.dat", tmp_path / "rows.gz", kind="jsonl") == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n')
    assert rows_of(tmp_path / "x.jsonl", kind="text") == [{"text": '{"text": "a"}\n'}]
    with pytest.raises(ConfigError, match=r"data_kind = 'xml' must be one of text\|jsonl"):
        find_sources([str(tmp_path / "x.jsonl")], "xml")


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    with pytest.warns(LogitCacheWarning, match=r"2 left out, the first is .*a\.txt"):
        assert rows_of(tmp_path / "a.txt", tmp_path / "*.txt") == [{"text": "a"}, {"text": "b"}]


def test_directories_give_a_warning_or_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"name its files, for example .*/\*\.jsonl"):
        find_sources([str(tmp_path)])
    (tmp_path / "more").mkdir()
    with pytest.raises(DataError, match=r"no file matches .*, only directories like .*more"):
        find_sources([str(tmp_path / "*")])
    (tmp_path / "a.txt").write_text("a")
    with pytest.warns(LogitCacheWarning, match="also matches directories, which aren't read: 1, .*more"):
        assert rows_of(tmp_path / "*") == [{"text": "a"}]


# Data sets


def test_saved_dataset(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data.select(range(5)), "test": data.select(range(5, 9))}).save_to_disk(
        tmp_path / "two"
    )
    assert rows_of(tmp_path / "plain") == ROWS
    assert rows_of(tmp_path / "two", split="test") == ROWS[5:9]
    with pytest.raises(DataError, match=r"no split 'dev'; it has train, test"):
        rows_of(tmp_path / "two", split="dev")


def test_saved_dataset_with_bytes(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "né".encode(), "parts": [{"image": b"\xff"}]}]).save_to_disk(tmp_path / "set")
    assert rows_of(tmp_path / "set") == [{"text": "né", "parts": [{"image": b"\xff"}]}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/name-2.5", ("org/name-2.5", None, None)),
        ("org/name:20231101.en", ("org/name", "20231101.en", None)),
        ("org/name:sub@main", ("org/name", "sub", "main")),
        ("org/name@refs/pr/1", ("org/name", None, "refs/pr/1")),
        ("org/name:", None),
        ("a/b/c", None),
        ("name", None),
    ],
)
def test_hub_ids(name: str, expected: tuple[str | None, ...] | None) -> None:
    assert parse_hub_id(name) == expected
    if expected:
        assert [(source.kind, source.name) for source in find_sources([name])] == [("hub", name)]


def test_a_missing_file_is_not_a_hub_id(tmp_path: Path) -> None:
    for name in ("data/x.jsonl", "data/x.csv.gz", str(tmp_path / "nothing"), "org/name:a:b"):
        with pytest.raises(DataError, match="doesn't exist"):
            find_sources([name])


def test_subsets(tmp_path: Path) -> None:
    """A directory loads by the same code as a repository on a hub."""
    lines = {"one": '{"text": "a", "extra": {"k": 1}}\n{"text": "b", "extra": "s"}\n', "two": '{"text": "c"}\n'}
    card = "---\nconfigs:\n"
    for name, content in lines.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
        card += f"- config_name: {name}\n  data_files: {name}.jsonl\n"
    (tmp_path / "README.md").write_text(card + "---\n")

    def read(subset: str | None, split: str = "train") -> list[dict[str, Any]]:
        return list(read_hub(HubId(str(tmp_path), subset, None), "org/name", split))

    assert read("one") == [{"text": "a", "extra": {"k": 1}}, {"text": "b", "extra": "s"}]
    assert read("two") == [{"text": "c"}]
    with pytest.raises(DataError, match=r"has several subsets; write .*:SUBSET with one of one, two"):
        read(None)
    with pytest.raises(DataError, match=r"no subset 'three'; write .*:SUBSET with one of one, two"):
        read("three")
    with pytest.raises(DataError, match=r"Bad split: dev. Available splits: \['train'\]"):
        read("two", split="dev")
