"""Rows of every kind with random damage: they are counted as left out, or give one clear error, never a traceback."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dump_tools import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logitcache as lc
from logitcache.data import find_sources
from logitcache.dump import make_config
from logitcache.dump.corpus import Corpus
from logitcache.dump.settings import Job, resolve
from logitcache.utils.progress import silent

pytestmark = pytest.mark.hostile

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
SOUND: list[dict[str, Any]] = [
    {"text": "The state of the union is strong."},
    {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8], "attention_mask": [1, 1, 1, 0]},
    {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "position_ids": [0, 1, 2]},
    {"prompt": "Is it strong?", "completion": " It is."},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "assistant", "content": "four", "train": True},
        ],
        "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": False},
    },
]
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 60_000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.sampled_from(["\ud83d", "", " ", "assistant", "bogus", "<|im_end|>", "[1, 2]"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-1, 60_000), max_size=4),
    st.just([{}]),
    st.just([[]]),
    st.just({"a": [1, {"b": None}]}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a row that can be replaced, as the keys that lead to it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(*path, key), *places(value[key], (*path, key))]]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    row = copy.deepcopy(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(0, 3))):
        found = places(row)
        if not found:
            break
        place = draw(st.sampled_from(found))
        inner: Any = row
        for key in place[:-1]:
            inner = inner[key]
        match draw(st.sampled_from(["replace", "remove", "repeat"])):
            case "replace":
                inner[place[-1]] = copy.deepcopy(draw(odd))  # some are the same object each time
            case "remove":
                del inner[place[-1]]
            case "repeat" if isinstance(inner, list):
                inner.append(copy.deepcopy(inner[place[-1]]))
    return row


@pytest.fixture(scope="module")
def job(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = tmp_path_factory.mktemp("rows") / "sound.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SOUND))
    return resolve(make_config({"teacher": str(tiny_llama_dir), "data": [str(path)], "out": path.parent / "o"} | TINY))


def read(job: Job, path: Path, **changed: Any) -> Corpus | lc.LogitCacheError:
    """The corpus, read to its end, or the error that ended it."""
    config = job.config.model_copy(update=changed)
    corpus = Corpus(replace(job, sources=find_sources([str(path)]), config=config), silent)
    sequences, ended = 0, None
    try:
        sequences = sum(1 for _ in corpus)
    except lc.LogitCacheError as error:
        ended = error
    if ended is not None:
        assert len(str(ended).splitlines()) <= 2, str(ended)
        return ended
    assert sequences >= corpus.tally.read - corpus.tally.left_out_rows  # each row gave one, or is counted as left out
    return corpus


def test_correct_rows_are_all_used(job: Job) -> None:
    assert job.sources[0].path is not None
    corpus = read(job, job.sources[0].path)
    assert isinstance(corpus, Corpus), corpus
    assert (corpus.tally.read, corpus.tally.left_out_rows) == (len(SOUND), 0)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(mutated(), min_size=1, max_size=3))
def test_damaged_rows_are_counted_or_one_clear_error(job: Job, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read(job, path)
    read(job, path, bad_rows="skip")
    read(job, path, positions="all", long_rows="split")
    read(job, path, text_column=next(iter(rows[0]), "text"))


@pytest.mark.parametrize("depth", [400, 900, 100_000])
def test_deep_values_are_used_or_one_clear_error(job: Job, tmp_path: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    called = {**said[1], "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}
    lines = [
        json.dumps({"messages": said, "tools": '[{"name": "f", "parameters": ' + deep + "}]"}),
        json.dumps({"messages": [said[0], called]}),
        json.dumps({"messages": said}).replace('"b"', f'"b", "x": {deep}'),
    ]
    path = tmp_path / "rows.jsonl"
    for line in lines:
        path.write_text(line + "\n")
        whole = read(job, path)
        assert isinstance(whole, Corpus) or "nested too deep" in str(whole)


def test_a_dump_of_damaged_rows_counts_what_it_left_out(tiny_llama_dir: Path, tmp_path: Path) -> None:
    rows = [
        SOUND[0],
        {"messages": [{"role": "user", "content": "Well?"}]},
        {"input_ids": [5, 6], "labels": [6, 7]},
        {"text": ""},
        SOUND[7],
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"teacher": str(tiny_llama_dir), "data": [str(path)]} | TINY
    with pytest.raises(lc.LogitCacheError, match=r"rows.jsonl row 3: labels\[0\] is 6 .*--bad-rows skip"):
        lc.dump(out=tmp_path / "stopped", **config)
    with pytest.warns(lc.errors.LogitCacheWarning, match="1 of 5 rows: no assistant turn"):
        cache = lc.dump(out=tmp_path / "skipped", bad_rows="skip", **config)
    counts = cache.manifest.provenance.settings["rows"]
    assert isinstance(counts, dict)
    assert len(cache) == 2
    assert counts["read"] == 5
    assert {reason[:16]: one["first"] for reason, one in counts["left_out"].items()} == {
        "no assistant turn (the roles are: user)"[:16]: "rows.jsonl row 2",
        "labels[0] is 6 where the"[:16]: "rows.jsonl row 3",
        "empty": "rows.jsonl row 4",
    }
