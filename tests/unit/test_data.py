"""Which positions of rows get targets, compared with slow reference implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from logitcache.data import RowTokeniser
from logitcache.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


def tokenise(tokenizer: Any, row: dict[str, Any], **options: Any) -> list[Any]:
    options = {"vocab_size": len(tokenizer), "max_length": 10_000} | options
    return list(RowTokeniser(tokenizer, **options).sequences(row, "row 1"))


# Splitting


@settings(deadline=None, max_examples=200)
@given(length=st.integers(0, 60), max_length=st.integers(2, 20), data=st.data())
def test_split_rows_predict_every_token_once(tokenizer: Any, length: int, max_length: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, max_length - 1))
    ids = data.draw(st.lists(st.integers(0, 49_151), min_size=length, max_size=length))
    sequences = tokenise(tokenizer, {"input_ids": ids}, max_length=max_length, overlap=overlap)
    predicted: list[tuple[int, ...]] = []
    start = 0
    for sequence in sequences:
        assert 2 <= len(sequence.token_ids_L) <= max_length
        assert sequence.token_ids_L.tolist() == ids[start : start + len(sequence.token_ids_L)]
        assert not sequence.target_mask_L[-1]
        predicted += [start + t + 1 for t in np.flatnonzero(sequence.target_mask_L)]
        start += max_length - overlap
    if overlap:
        assert predicted == list(range(1, length))
    else:
        # Without overlap the first token of a sequence has no context, so it isn't a target.
        assert predicted == [i for i in range(length) if i % max_length]


def test_truncate(tokenizer: Any) -> None:
    (sequence,) = tokenise(tokenizer, {"input_ids": list(range(50))}, max_length=8, long_rows="truncate")
    assert sequence.token_ids_L.tolist() == list(range(8))


@pytest.mark.parametrize("row", [{"text": ""}, {"text": None}, {"input_ids": []}, {"messages": []}, {"input_ids": [5]}])
def test_rows_without_a_prediction_give_nothing(tokenizer: Any, row: dict[str, Any]) -> None:
    assert tokenise(tokenizer, row) == []


def test_labels_mark_what_is_predicted(tokenizer: Any) -> None:
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, -100, 9]}
    (sequence,) = tokenise(tokenizer, row)
    assert sequence.target_mask_L.tolist() == [False, True, False, True, False]
    (sequence,) = tokenise(tokenizer, row, positions="all")
    assert sequence.target_mask_L.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("column", ["messages", "input_ids", "token_ids"])
def test_json_text_in_a_chat_column_is_refused(tokenizer: Any, column: str) -> None:
    row = {column: '[{"role": "user", "content": "Say something."}]'}
    with pytest.raises(DataError, match=f"row 1: column '{column}' holds text, not a list"):
        list(RowTokeniser(tokenizer, vocab_size=60_000, max_length=64).sequences(row, "row 1"))
    asked = RowTokeniser(tokenizer, vocab_size=60_000, max_length=64, text_column=column)
    assert len(list(asked.sequences(row, "row 1"))) == 1


def test_prompt_and_completion(tokenizer: Any) -> None:
    row = {"prompt": "The capital of France is", "completion": " Paris, on the Seine."}
    (sequence,) = tokenise(tokenizer, row)
    kept = sequence.token_ids_L[1:][sequence.target_mask_L[:-1]]
    assert tokenizer.decode(kept) == " Paris, on the Seine.<|im_end|>"
    assert tokenizer.decode(sequence.token_ids_L) == row["prompt"] + row["completion"] + "<|im_end|>"
    (everything,) = tokenise(tokenizer, row, positions="all")
    assert everything.target_mask_L.tolist() == [True] * (len(everything.token_ids_L) - 1) + [False]


# Chats


CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris.\nIt lies on the Seine."},
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "Rome"},
]


def test_a_position_predicts_the_token_after_it(tokenizer: Any) -> None:
    (sequence,) = tokenise(tokenizer, {"messages": CHAT})
    spoken = tokenizer.decode(sequence.token_ids_L[1:][sequence.target_mask_L[:-1]])
    assert spoken == "Paris.\nIt lies on the Seine.<|im_end|>Rome<|im_end|>"


def test_prompt_and_completion_as_messages(tokenizer: Any) -> None:
    (sequence,) = tokenise(tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]})
    spoken = tokenizer.decode(sequence.token_ids_L[1:][sequence.target_mask_L[:-1]])
    assert spoken == "Rome<|im_end|>"


def test_all_positions_of_a_chat(tokenizer: Any) -> None:
    (sequence,) = tokenise(tokenizer, {"messages": CHAT}, positions="all")
    assert sequence.target_mask_L.tolist() == [True] * (len(sequence.token_ids_L) - 1) + [False]


def test_no_template(smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        tokenise(tokenizer, {"messages": CHAT})
