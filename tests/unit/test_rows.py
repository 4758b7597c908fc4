"""What a row is taken for by its columns, what is left out or cut, and that all of it is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from logitcache.data import PromptTokeniser, RowTokeniser, SpecialTokens, Tally
from logitcache.errors import ConfigError, DataError, RowError

BOS, END = "<|im_start|>", "<|endoftext|>"
Tokenise = Callable[..., tuple[list[Any], Tally]]


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def with_bos(smollm2_dir: Path) -> Any:
    """SmolLM2's tokenizer as Llama's or Gemma's would be: BOS before every text, no chat template."""
    made = AutoTokenizer.from_pretrained(smollm2_dir)
    made.chat_template = None
    made._tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, made.bos_token_id)]
    )
    return made


def tokenise(tokenizer: Any, row: dict[str, Any], **options: Any) -> tuple[list[Any], Tally]:
    made = RowTokeniser(tokenizer, **{"vocab_size": len(tokenizer), "max_length": 10_000} | options)
    return made.sequences(row, "row 1"), made.tally


def spoken(tokenizer: Any, sequence: Any) -> str:
    """The tokens that are to be predicted, as text."""
    return str(tokenizer.decode(sequence.token_ids_L[1:][sequence.target_mask_L[:-1]]))


# Documents


def test_a_document_ends_with_the_end_of_text(tokenizer: Any) -> None:
    ids = tokenizer("A plain document.")["input_ids"]
    for wanted, end in (("auto", [tokenizer.convert_tokens_to_ids(END)]), ("none", []), ("<|im_end|>", [2])):
        (sequence,), _ = tokenise(tokenizer, {"text": "A plain document."}, end_of_text=wanted)
        assert sequence.token_ids_L.tolist() == ids + end
        assert sequence.target_mask_L.tolist() == [True] * (len(ids + end) - 1) + [False]
    (sequence,), _ = tokenise(tokenizer, {"text": f"A plain document.{END}"})
    assert sequence.token_ids_L.tolist() == [*ids, 0]
    with pytest.raises(ConfigError, match="end_of_text = '<eot>' is no token"):
        tokenise(tokenizer, {"text": "a"}, end_of_text="<eot>")


def test_the_end_of_a_document_is_not_the_end_of_a_turn(tokenizer: Any, with_bos: Any) -> None:
    # SmolLM2-Instruct's end token ends turns; without a chat template it is the only end there is.
    assert tokenizer.convert_ids_to_tokens(SpecialTokens.of(tokenizer).end_of_text) == END
    assert SpecialTokens.of(with_bos).end_of_text == with_bos.eos_token_id


@settings(deadline=None, max_examples=150)
@given(length=st.integers(1, 70), max_length=st.integers(4, 20), overlap=st.integers(0, 2), data=st.data())
def test_every_piece_begins_with_bos(
    with_bos: Any, length: int, max_length: int, overlap: int, data: st.DataObject
) -> None:
    bos = with_bos.bos_token_id
    ids = [bos, *data.draw(st.lists(st.integers(5, 49_151), min_size=length, max_size=length))]
    sequences, _ = tokenise(with_bos, {"input_ids": ids}, max_length=max_length, overlap=overlap)
    stop, predicted = 0, []
    for piece, sequence in enumerate(sequences):
        tokens = sequence.token_ids_L.tolist()
        assert tokens[0] == bos
        assert len(tokens) <= max_length
        start = stop - overlap if piece else 0
        body = tokens[1:] if piece else tokens
        assert body == ids[start : start + len(body)]
        stop = start + len(body)
        offset = start - 1 if piece else start
        predicted += [offset + t + 1 for t in np.flatnonzero(sequence.target_mask_L)]
        if piece:
            assert not sequence.target_mask_L[0]  # what BOS says there is no prediction within the document
    assert predicted == sorted(set(predicted))
    if overlap:
        assert predicted == list(range(1, len(ids)))


def test_bos_is_never_there_twice(with_bos: Any) -> None:
    (sequence,), tally = tokenise(with_bos, {"text": f"{BOS}Once upon a time"}, end_of_text="none")
    assert sequence.token_ids_L.tolist() == with_bos("Once upon a time")["input_ids"]
    assert sum(note.rows for note in tally.notes.values()) == 1
    (sequence,), tally = tokenise(with_bos, {"prompt": f"{BOS}Once upon", "completion": " a time"})
    assert spoken(with_bos, sequence) == " a time<|im_end|>"
    assert sequence.token_ids_L.tolist()[:-1] == with_bos("Once upon a time")["input_ids"]
    assert tally.notes


def test_a_tokenizer_that_ends_texts_itself(smollm2_dir: Path) -> None:
    made = AutoTokenizer.from_pretrained(smollm2_dir)
    made.chat_template = None
    made._tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A <|im_end|>", pair=None, special_tokens=[(BOS, 1), ("<|im_end|>", 2)]
    )
    special = SpecialTokens.of(made)
    assert (special.before, special.after) == ((1,), (2,))
    (sequence,), _ = tokenise(made, {"text": "A document."})
    assert sequence.token_ids_L.tolist() == made("A document.")["input_ids"]
    (sequence,), _ = tokenise(made, {"prompt": "One", "completion": " two"})
    assert spoken(made, sequence) == " two<|im_end|>"


# Long rows


CHAT = [
    {"role": "user", "content": "Count, please."},
    {"role": "assistant", "content": "one two three four five six seven eight nine ten"},
]


def test_rows_with_context_are_not_split_unless_asked(tokenizer: Any) -> None:
    whole = tokenise(tokenizer, {"messages": CHAT})[0][0].token_ids_L.tolist()
    limit = len(whole) - 6
    for row in ({"messages": CHAT}, {"prompt": "Count, please.", "completion": " one" * 80}):
        (cut,), tally = tokenise(tokenizer, row, max_length=limit)
        assert len(cut.token_ids_L) == limit
        assert tally.cut["truncated"].rows == 1
        assert tally.cut["truncated"].tokens > 0
        many, tally = tokenise(tokenizer, row, max_length=limit, long_rows="split")
        assert len(many) > 1
        assert any("without their beginning" in what for what in tally.cut)
        none, tally = tokenise(tokenizer, row, max_length=limit, long_rows="drop")
        assert none == []
        assert tally.left_out[f"longer than {limit} tokens"].rows == 1
    many, tally = tokenise(tokenizer, {"text": "one two three " * 50}, max_length=limit)
    assert len(many) > 1
    assert tally.cut["split into several sequences (documents)"].rows == 1


def test_a_chat_whose_answer_begins_beyond_the_limit_is_left_out(tokenizer: Any) -> None:
    sequences, tally = tokenise(tokenizer, {"messages": CHAT}, max_length=10)
    assert sequences == []
    assert tally.left_out["no token to predict in its first 10 tokens"].first == "row 1"


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
def test_rows_that_can_not_be_taken_right(tokenizer: Any, row: dict[str, Any], match: str) -> None:
    with pytest.raises(RowError, match=f"row 1: .*{match}"):
        tokenise(tokenizer, row)


# Columns


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


def test_an_empty_column_gives_way_and_is_counted(tokenizer: Any) -> None:
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


def test_unknown_columns_are_an_error_with_the_way_out(tokenizer: Any) -> None:
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


# What stands beside


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
def test_columns_that_are_not_read_are_told(tokenizer: Any, row: dict[str, Any], unread: str) -> None:
    _, tally = tokenise(tokenizer, row)
    assert f"columns that aren't read: {unread}" in tally.told


def test_a_preference_is_refused_with_the_way_out(tokenizer: Any) -> None:
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


def test_where_the_tokenizer_gives_no_end_or_the_ids_no_beginning(smollm2_dir: Path, with_bos: Any) -> None:
    endless = AutoTokenizer.from_pretrained(smollm2_dir)
    endless.eos_token = None
    for row, note in (
        ({"text": "A document."}, "nothing ends the documents: the tokenizer has no end token; name one with"),
        ({"prompt": "a", "completion": " b"}, "nothing ends the completions: the tokenizer has no end token"),
    ):
        _, tally = tokenise(endless, row)
        assert any(told.startswith(note) for told in tally.notes)
    for wanted in ("none", END):
        assert tokenise(endless, {"text": "A document."}, end_of_text=wanted)[1].notes == {}
    _, tally = tokenise(with_bos, {"input_ids": [5, 6]})
    assert "token ids without what the tokenizer puts before a text (BOS); they are taken as they are" in tally.notes
    assert tokenise(with_bos, {"input_ids": [with_bos.bos_token_id, 6]})[1].notes == {}


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
