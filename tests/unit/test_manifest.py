"""The manifest: canonical bytes, versions and features, what it may hold, and what it must never hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cache_builder import build_cache, make_provenance
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from logitcache.cache.reader import open_cache
from logitcache.errors import CacheFormatError, ConfigError
from logitcache.format.canonical import canonical_json, parse_canonical
from logitcache.format.manifest import (
    MAX_MANIFEST_BYTES,
    Card,
    Manifest,
    Teacher,
    json_schema,
    manifest_digest,
    parse_manifest,
    require_writer_features,
)

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "manifest.schema.json"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("manifest") / "cache"
    build_cache(root)
    return (root / "manifest.json").read_bytes()


def changed(raw: bytes, **changes: Any) -> bytes:
    return canonical_json(json.loads(raw) | changes)


# Examples of RFC 8785, appendix B.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (-5e-324, "-5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (9007199254740992.0, "9007199254740992"),
        (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (1.0000000000000001e23, "1.0000000000000001e+23"),
        (999999999999999700000.0, "999999999999999700000"),
        (999999999999999900000.0, "999999999999999900000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (333333333.3333332, "333333333.3333332"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (1424953923781206.2, "1424953923781206.2"),
        (0.015625, "0.015625"),
        (1.0, "1"),
    ],
)
def test_numbers_print_as_rfc_8785_says(value: float, text: str) -> None:
    assert canonical_json(value) == f"{text}\n".encode()
    assert float(text) == value


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_canonical_json_reads_back_and_is_a_fixed_point(value: Any) -> None:
    raw = canonical_json(value)
    assert parse_canonical(raw) == value
    assert canonical_json(parse_canonical(raw)) == raw
    assert b"\n" not in raw[:-1]


def test_keys_sort_by_utf16_as_rfc_8785_says() -> None:
    assert (
        canonical_json({"\ufb33": 1, "\U0001f600": 2, "b": 3, "a": 4}) == '{"a":4,"b":3,"😀":2,"\ufb33":1}\n'.encode()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, object(), {1: 2}, "\ud800"])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the contract
        canonical_json(value)


@pytest.mark.parametrize(
    "spelling",
    [
        b'{"a": 1}\n',
        b'{"a":1}',
        b'{"a":1,"a":1}\n',
        b'{"b":1,"a":1}\n',
        b'{"a":1.0}\n',
        b'{"a":NaN}\n',
        b"\xff\n",
        b"[" * 100_000,
        b'{"a":"\\u0041"}\n',
        b"1" * 5000 + b"\n",
    ],
)
def test_other_forms_of_json_are_refused(spelling: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_canonical(spelling)


def test_the_manifest_is_canonical_and_its_digest_names_the_cache(tmp_path: Path) -> None:
    digest = build_cache(tmp_path / "cache")
    raw = (tmp_path / "cache" / "manifest.json").read_bytes()
    manifest = parse_manifest(raw, "it")
    assert manifest.to_bytes() == raw
    assert digest == manifest_digest(raw) == open_cache(tmp_path / "cache").digest
    assert (tmp_path / "cache" / "manifest.sha256").read_text() == f"{digest.removeprefix('sha256:')}  manifest.json\n"


def test_later_writers_may_add_extensions_and_nothing_else(raw: bytes) -> None:
    manifest = parse_manifest(changed(raw, extensions={"x.example": {"any": [1, None]}}), "it")
    assert manifest.extensions == {"x.example": {"any": [1, None]}}
    assert b'"any":[1,null]' in manifest.to_bytes()
    with pytest.raises(CacheFormatError, match="it is not a valid manifest: surprise: Extra inputs"):
        parse_manifest(changed(raw, surprise=1), "it")


def test_another_version_is_refused_before_anything_else(raw: bytes) -> None:
    with pytest.raises(CacheFormatError, match=r"format version 2; this logitcache reads version 1: upgrade"):
        parse_manifest(changed(raw, format_version=2, provenance="of a new kind"), "it")


@pytest.mark.parametrize("version", [True, "1", None, 1.5, [1]])
def test_a_version_of_the_wrong_kind_is_refused(raw: bytes, version: Any) -> None:
    with pytest.raises(CacheFormatError, match="format version"):
        parse_manifest(changed(raw, format_version=version), "it")


def test_an_unknown_reader_feature_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CacheFormatError, match=r"it: reading it needs tails-2, unknown"):
        parse_manifest(changed(raw, reader_features=["tails-2"]), "it")


def test_an_unknown_writer_feature_reads_but_does_not_derive(raw: bytes) -> None:
    manifest = parse_manifest(changed(raw, writer_features=["signed"]), "it")
    with pytest.raises(CacheFormatError, match="deriving a cache from it needs signed"):
        require_writer_features(manifest, "it")
    require_writer_features(parse_manifest(raw, "it"), "it")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard_format", "parquet"),
        ("totals", {"shards": -1, "sequences": 0, "tokens": 0, "targets": 0, "bytes": 0}),
        ("tokenizer", {"../x.json": {"bytes": 1, "sha256": "0" * 64}}),
        ("tokenizer", {"/etc/x.json": {"bytes": 1, "sha256": "0" * 64}}),
        ("tokenizer", {"code.py": {"bytes": 1, "sha256": "0" * 64}}),
        ("tokenizer", {"x.pkl": {"bytes": 1, "sha256": "0" * 64}}),
        ("shard_table", {"bytes": 1, "sha256": "0" * 63}),
        ("reader_features", "all"),
        ("card", {"licence": 3}),
        ("card", {"licence": "x" * 20_000}),
        ("format", "zarr"),
        ("encoding", {"preset": "vague"}),
    ],
)
def test_wrong_fields_are_refused(raw: bytes, field: str, value: Any) -> None:
    with pytest.raises(CacheFormatError, match="it"):
        parse_manifest(changed(raw, **{field: value}), "it")


def test_provenance_fits_together(raw: bytes) -> None:
    provenance = json.loads(raw)["provenance"]
    with pytest.raises(CacheFormatError, match="top_k 301 of a vocabulary of 300"):
        parse_manifest(changed(raw, provenance=provenance | {"top_k": 301}), "it")
    with pytest.raises(CacheFormatError, match="temperature"):
        parse_manifest(changed(raw, provenance=provenance | {"temperature": 2}), "it")


def test_the_size_is_limited_for_writing_and_reading(raw: bytes) -> None:
    with pytest.raises(CacheFormatError, match="at most 1,048,576"):
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1), "it")
    big = parse_manifest(raw, "it").model_copy(update={"extensions": {"x": "y" * MAX_MANIFEST_BYTES}})
    with pytest.raises(ConfigError, match="at most 1,048,576"):
        big.to_bytes()


@pytest.mark.parametrize("name", ["/home/me/model", "~/model", "./model", "..", "C:\\model", "C:/model", "\\\\host\\x"])
def test_a_local_path_is_no_name_of_a_teacher(name: str) -> None:
    with pytest.raises(ValidationError, match="last part only"):
        Teacher(name=name, dtype="float32", engine="transformers")


def test_nothing_of_this_machine_is_in_the_cache(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache")
    for name in ("manifest.json", "shards.arrow"):
        raw = (tmp_path / "cache" / name).read_bytes()
        assert str(tmp_path).encode() not in raw
        assert b"/home" not in raw


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_provenance().top_k = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        Card(license="MIT")


def test_the_schema_in_the_docs_is_the_models(raw: bytes) -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), "write json_schema() to docs/manifest.schema.json"
    jsonschema.validate(json.loads(raw), json.loads(SCHEMA.read_text(encoding="utf-8")))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(raw) | {"x": 1}, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_absent_fields_stay_absent(raw: bytes) -> None:
    assert b"null" not in raw
    assert isinstance(parse_manifest(raw, "it"), Manifest)


def test_the_reader_printed_in_the_docs_agrees(tmp_path: Path) -> None:
    page = (SCHEMA.parent / "reference" / "format.md").read_text(encoding="utf-8")
    code = page.partition('```python title="read_cache.py"\n')[2].partition("```")[0]
    assert "logitcache" not in code
    namespace: dict[str, Any] = {}
    exec(compile(code, "format.md", "exec"), namespace)
    build_cache(tmp_path / "cache")
    manifest, rows = namespace["read_cache"](tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert manifest == json.loads(cache.manifest.to_bytes())
    assert [row["path"] for row in rows] == [entry.path for entry in cache.shards]
    path = tmp_path / "cache" / rows[1]["path"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="is damaged"):
        namespace["read_cache"](tmp_path / "cache")
