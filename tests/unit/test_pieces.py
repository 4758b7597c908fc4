"""Where a sequence begins and ends: BOS before every piece, the end of a document, and rows over the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_tools import BOS, END, beginning_with_bos, spoken, tokenise
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from logitcache.data import SpecialTokens
from logitcache.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def with_bos(smollm2_dir: Path) -> Any:
    return beginning_with_bos(smollm2_dir)


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
            assert not sequence.target_mask_L[0]  # the prediction at BOS isn't one within the document
    assert predicted == sorted(set(predicted))
    if overlap:
        assert predicted == list(range(1, len(ids)))


def test_bos_is_never_repeated(with_bos: Any) -> None:
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


def test_where_the_tokenizer_gives_no_end_or_the_ids_no_beginning(smollm2_dir: Path, with_bos: Any) -> None:
    endless = AutoTokenizer.from_pretrained(smollm2_dir)
    endless.eos_token = None
    for row, note in (
        ({"text": "A document."}, "nothing ends the documents: the tokenizer has no end token; name one with"),
        ({"prompt": "a", "completion": " b"}, "nothing ends the completions: the tokenizer has no end token"),
    ):
        _, tally = tokenise(endless, row)
        assert any(found.startswith(note) for found in tally.notes)
    for wanted in ("none", END):
        assert tokenise(endless, {"text": "A document."}, end_of_text=wanted)[1].notes == {}
    _, tally = tokenise(with_bos, {"input_ids": [5, 6]})
    assert "token ids without what the tokenizer puts before a text (BOS); they are taken as they are" in tally.notes
    assert tokenise(with_bos, {"input_ids": [with_bos.bos_token_id, 6]})[1].notes == {}


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
