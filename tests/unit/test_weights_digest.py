"""The digest of a teacher's weights covers the files that are loaded, and no other files of the directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import logitcache as lc
from logitcache.models.identity import find_teacher, weights_digest

# Of a single file with the content "one".
ONE = "sha256:e8fdaa78e6ffffcd50b3cdb2adbd698c478d05e2583a9b8a59645eefbfdcf42d"


def directory(place: Path, **files: str) -> Path:
    place.mkdir()
    for name, content in {"config.json": "{}", **files}.items():
        (place / name).write_text(content)
    return place


def digest(place: Path) -> str:
    return weights_digest(find_teacher(str(place)))


def index(**shards: str) -> str:
    return json.dumps({"weight_map": shards})


def test_a_plain_directory_keeps_its_digest(tmp_path: Path) -> None:
    assert digest(directory(tmp_path / "a", **{"model.safetensors": "one"})) == ONE


@pytest.mark.parametrize("beside", ["consolidated.safetensors", "adapter_model.safetensors", "model.fp16.safetensors"])
def test_other_files_beside_a_model_do_not_count(tmp_path: Path, beside: str) -> None:
    assert digest(directory(tmp_path / "a", **{"model.safetensors": "one", beside: "other"})) == ONE


def test_an_index_names_the_files_that_count(tmp_path: Path) -> None:
    shards = {"model-1.safetensors": "one", "model-2.safetensors": "two"}
    named = index(a="model-1.safetensors", b="model-2.safetensors", c="model-1.safetensors")
    plain = digest(directory(tmp_path / "plain", **shards))
    indexed = directory(tmp_path / "indexed", **shards, **{"model.safetensors.index.json": named})
    assert digest(indexed) == plain != ONE
    (indexed / "consolidated.safetensors").write_text("other")
    assert digest(indexed) == plain
    (indexed / "model-2.safetensors").write_text("changed")
    assert digest(indexed) != plain


@pytest.mark.parametrize(
    ("named", "match"),
    [
        (index(a="model-7.safetensors"), "names model-7.safetensors, which is not there"),
        (index(), "names no file"),
        ("[]", "is not an index of weights"),
        ("{", "is not an index of weights"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, named: str, match: str) -> None:
    place = directory(tmp_path / "a", **{"model-1.safetensors": "one", "model.safetensors.index.json": named})
    with pytest.raises(lc.LogitCacheError, match=match):
        digest(place)


def test_a_file_that_the_configuration_names_counts(tmp_path: Path) -> None:
    files = {"config.json": json.dumps({"transformers_weights": "own.safetensors"}), "own.safetensors": "one"}
    assert digest(directory(tmp_path / "a", **files, **{"model.safetensors": "other"})) == ONE


@pytest.mark.parametrize("files", [("config.json", "adapter_config.json"), ("adapter_config.json",)])
def test_a_directory_with_an_adapter_is_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    (tmp_path / "a").mkdir()
    for name in files:
        (tmp_path / "a" / name).write_text("{}")
    with pytest.raises(lc.LogitCacheError, match="merge_and_unload"):
        find_teacher(str(tmp_path / "a"))
