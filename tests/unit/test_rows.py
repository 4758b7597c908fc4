"""What kind a row is by its columns, which rows are left out, and that everything is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from row_tools import beginning_with_bos, spoken, tokenise
from transformers import AutoTokenizer

from logitcache.data import PromptTokeniser, Tally
from logitcache.errors import DataError, RowError


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def with_bos(smollm2_dir: Path) -> Any:
    return beginning_with_bos(smollm2_dir)


def test_instructions_are_chats_where_there_is_a_template(tokenizer: Any, with_bos: Any) -> None:
    row = {"instruction": "Add the numbers.", "input": "1 2", "output": "3"}
    (sequence,), tally = tokenise(tokenizer, row)
    assert spoken(tokenizer, sequence) == "3<|im_end|>"
    assert "<|im_start|>user\nAdd the numbers.\n\n1 2<|im_end|>" in tokenizer.decode(sequence.token_ids_L)
    assert tally.told["an instruction with its answer, read as a chat"].rows == 1
    (sequence,), tally = tokenise(with_bos, row)
    assert "### Instruction:\nAdd the numbers.\n\n### Input:\n1 2\n\n### Response:\n3" in with_bos.decode(
        sequence.token_ids_L
    )
    assert spoken(with_bos, sequence) == "3<|im_end|>"


def test_an_empty_column_is_skipped_and_counted(tokenizer: Any) -> None:
    (sequence,), tally = tokenise(tokenizer, {"messages": None, "text": "a document"}, end_of_text="none")
    assert tokenizer.decode(sequence.token_ids_L) == "a document"
    assert tally.notes["column messages is empty, text is read instead"].rows == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " \n"}, "empty"),
        ({"messages": None}, "empty"),
        ({"messages": [{"role": "user", "content": "Well?"}]}, "no assistant turn (the roles are: user)"),
        ({"messages": [{"role": "critic", "content": "Bad."}]}, "no assistant turn (the roles are: critic)"),
        ({"prompt": "a", "completion": ""}, "an empty completion"),
        ({"input_ids": [5]}, "no token to predict"),
    ],
)
def test_what_is_left_out_is_counted_and_named(tokenizer: Any, row: dict[str, Any], reason: str) -> None:
    sequences, tally = tokenise(tokenizer, row)
    assert sequences == []
    assert {reason: (1, "row 1")} == {why: (what.rows, what.first) for why, what in tally.left_out.items()}


def test_unknown_columns_are_an_error_with_advice(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"found no column .*; the columns are body. Choose with --text-column"):
        tokenise(tokenizer, {"body": "x"})


def test_counts_survive_json_and_name_no_directory() -> None:
    tally = Tally(read=3)
    tally.leave_out("empty", "/home/me/data/rows.jsonl row 2")
    tally.cut_row("truncated", "/home/me/data/rows.jsonl row 3", tokens=7)
    plain = tally.to_json()
    assert plain == {
        "read": 3,
        "left_out": {"empty": {"rows": 1, "first": "rows.jsonl row 2"}},
        "cut": {"truncated": {"rows": 1, "first": "rows.jsonl row 3", "tokens": 7}},
    }
    assert Tally.from_json(plain).to_json() == plain
    lines = list(tally.lines())
    assert lines[0] == "rows: 3 read, 1 left out, 1 longer than the limit"
    assert "truncated (1 row, 7 tokens left out; the first is /home/me/data/rows.jsonl row 3)" in lines[2]


def test_reasons_do_not_grow_without_bound() -> None:
    tally = Tally()
    for number in range(200):
        tally.leave_out(f"reason {number}", f"row {number}")
    assert len(tally.left_out) <= 41
    assert tally.left_out_rows == 200


# Columns beside


def test_a_system_column_begins_the_chat(tokenizer: Any) -> None:
    asked, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}
    begun = {"role": "system", "content": "Be a pirate."}
    (whole,), _ = tokenise(tokenizer, {"messages": [begun, asked, said]})
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]
    for row in (
        {"messages": [asked, said], "system": "Be a pirate."},
        {"conversations": sharegpt, "system_prompt": "Be a pirate."},
        {"prompt": [asked], "completion": [said], "system": "Be a pirate."},
        {"instruction": "Hi", "output": "Ahoy", "system": "Be a pirate."},
        {"messages": [begun, asked, said], "system": "Be a pirate."},
    ):
        (sequence,), tally = tokenise(tokenizer, row)
        assert sequence.token_ids_L.tolist() == whole.token_ids_L.tolist()
        assert sequence.target_mask_L.tolist() == whole.target_mask_L.tolist()
        assert not any("aren't read" in what for what in tally.told)
    (sequence,), tally = tokenise(tokenizer, {"messages": [begun, asked, said], "system": "Be brief."})
    assert sequence.token_ids_L.tolist() == whole.token_ids_L.tolist()
    assert list(tally.notes) == ["column system isn't read: the messages have a system message of their own"]
    with pytest.raises(RowError, match="row 1: column system holds list; it must be text"):
        tokenise(tokenizer, {"messages": [asked, said], "system": ["Be a pirate."]})


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"text": "A document.", "url": "x", "date": 1}, "url, date"),
        ({"prompt": "a", "completion": " b", "system": "c"}, "system"),
        ({"input_ids": [5, 6], "attention_mask": [1, 1], "text": "x"}, "text"),
        ({"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}, "history"),
        (
            {"text": "A document.", **{f"c{i}": 1 for i in range(30)}},
            ", ".join(f"c{i}" for i in range(20)) + " and 10 more",
        ),
    ],
)
def test_columns_that_are_not_read_are_named(tokenizer: Any, row: dict[str, Any], unread: str) -> None:
    _, tally = tokenise(tokenizer, row)
    assert f"columns that aren't read: {unread}" in tally.told


def test_a_preference_is_refused_with_advice(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"a preference \(chosen, rejected\).* give that one as prompt and completion"):
        tokenise(tokenizer, {"prompt": "Q?", "chosen": "good", "rejected": "bad"})


def test_values_in_messages_are_short_and_of_one_line(tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {f"{'c' * 500}\x1b[31m\n{i}": 1 for i in range(500)},
        {"messages": [{"role": "assistant", "content": "a", "weight": 10**400}]},
        {"messages": [{f"{'k' * 500}{i}\n": 1 for i in range(500)}]},
        {"conversations": [{"from": "x\n\x1b" * 300, "value": "a"}]},
        {"input_ids": [5, 6], "labels": [5, 10**400]},
        {"input_ids": [[5, 6]]},
    ]
    for row in rows:
        with pytest.raises(DataError) as refused:
            tokenise(tokenizer, row, positions="all")
        assert len(str(refused.value)) < 2000
        assert str(refused.value).isprintable()
    _, tally = tokenise(tokenizer, {"messages": [{"role": "x\n\x1b" * 300, "content": "a"}]})
    assert all(len(reason) < 200 and reason.isprintable() for reason in tally.left_out)


# Token rows


def test_padding_is_no_target(tokenizer: Any) -> None:
    for mask, kept in (([0, 0, 1, 1, 1], [7, 8, 9]), ([1, 1, 1, 0, 0], [5, 6, 7])):
        row = {"input_ids": [5, 6, 7, 8, 9], "attention_mask": mask, "position_ids": [1, 1, 0, 1, 2]}
        if mask[0]:
            row["position_ids"] = [0, 1, 2, 2, 2]
        (sequence,), _ = tokenise(tokenizer, row)
        assert sequence.token_ids_L.tolist() == kept
        assert sequence.target_mask_L.tolist() == [True, True, False]
    sequences, tally = tokenise(tokenizer, {"input_ids": [5, 6], "attention_mask": [0, 0]})
    assert sequences == []
    assert tally.left_out_rows == 1


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_trainers(tokenizer: Any, name: str) -> None:
    (sequence,), _ = tokenise(tokenizer, {"input_ids": [5, 6, 7, 8], name: [0, 0, 1, 1]})
    assert sequence.target_mask_L.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "hides tokens in the middle"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1]}, "2 attention_mask for 3 token ids"),
        ({"input_ids": [5, 6, 7], "labels": [5, 6]}, "2 labels for 3 token ids"),
        ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, r"labels\[0\] is 6 where the token is 5: .*not shifted"),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1, 0]}, "position_ids begin again"),
        ({"input_ids": [5, 6, 7], "loss_mask": 1}, "int loss_mask for 3 token ids"),
        ({"input_ids": [5, -1]}, "token ids must be from 0 to"),
        ({"text": b"\xff"}, "holds bytes that are not UTF-8"),
        ({"text": "half \ud83d"}, "half of a surrogate pair"),
        ({"messages": '[{"role": "user"}]'}, "column 'messages' holds text, not a list"),
        ({"text": 7}, "column 'text' holds int"),
        ({"text": {"a": 1}}, "column 'text' holds dict"),
        ({"prompt": "a", "completion": 3}, "must both be text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input holds int; it must be text"),
    ],
)
def test_rows_that_can_not_be_used(tokenizer: Any, row: dict[str, Any], match: str) -> None:
    with pytest.raises(RowError, match=f"row 1: .*{match}"):
        tokenise(tokenizer, row)


def test_the_prompt_of_token_ids_ends_before_their_answer(tokenizer: Any) -> None:
    made = PromptTokeniser(tokenizer, vocab_size=len(tokenizer), max_length=100)
    for row, prompt in (
        ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, [5, 6]),
        ({"input_ids": [5, 6, 7, 8, 9], "completion_mask": [0, 1, 0, 1, 0]}, [5, 6, 7]),
        ({"input_ids": [5, 6], "labels": [5, 6]}, [5, 6]),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, [5, 6]),
        ({"input_ids": [5, 6]}, [5, 6]),
    ):
        (sequence,) = made.sequences(row, "row 1")
        assert sequence.token_ids_L.tolist() == prompt
        assert sequence.target_mask_L.tolist() == [False] * (len(prompt) - 1) + [True]


def test_share_gpt_is_read_as_the_same_chat(tokenizer: Any) -> None:
    told = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    said = [
        {"role": role, "content": one["value"]} for role, one in zip(("system", "user", "assistant"), told, strict=True)
    ]
    (ours,), _ = tokenise(tokenizer, {"conversations": told})
    (theirs,), _ = tokenise(tokenizer, {"messages": said})
    assert ours.token_ids_L.tolist() == theirs.token_ids_L.tolist()
    assert spoken(tokenizer, ours) == "Ho<|im_end|>"
    with pytest.raises(RowError, match="row 1: message 1: is from 'narrator'"):
        tokenise(tokenizer, {"conversations": [{"from": "narrator", "value": "Once"}, *told]})
