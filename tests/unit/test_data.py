"""Which positions of rows get targets, against slow oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from logitcache.data import RowTokeniser
from logitcache.errors import DataError

TEMPLATES = Path(__file__).resolve().parent.parent / "data" / "chat_templates"
SPECIAL = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]
SPECIAL += ["<|user|>", "<|assistant|>", "<|end|>"]


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
        # Without overlap the first token of a sequence has no context, so nobody predicts it.
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
def test_json_that_was_not_decoded_is_no_document(tokenizer: Any, column: str) -> None:
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


# Chat: an oracle that knows the three templates by hand, and marks characters one at a time


def _chatml(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    parts = []
    if messages[0]["role"] != "system":
        system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        parts.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for message in messages:
        parts.append((f"<|im_start|>{message['role']}\n", False))
        parts.append((f"{message['content']}<|im_end|>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return parts


def _llama3(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    parts = [("<|im_start|>", False)]  # the tokenizer's bos_token
    for message in messages:
        parts.append((f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False))
        parts.append((f"{message['content'].strip()}<|eot_id|>", message["role"] == "assistant"))
    return parts


def _gemma(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    parts = [("<|im_start|>", False)]
    for message in messages:
        role = "model" if message["role"] == "assistant" else message["role"]
        parts.append((f"<start_of_turn>{role}\n", False))
        parts.append((f"{message['content'].strip()}<end_of_turn>", message["role"] == "assistant"))
        parts.append(("\n", False))
    return parts


def _oracle(tokenizer: Any, parts: list[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    text = "".join(part for part, _ in parts)
    spoken = [flag for part, flag in parts for _ in part]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    is_target = [any(spoken[a:b]) for a, b in encoded["offset_mapping"]]
    return encoded["input_ids"], [*is_target[1:], False]


words = st.text(
    st.sampled_from("abc de.\n<>|{}éß日") | st.characters(codec="utf-8", exclude_categories=["Co"]), min_size=1
)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@pytest.mark.parametrize(("template", "oracle"), [(None, _chatml), ("llama3", _llama3), ("gemma", _gemma)])
def test_chat_masks_equal_the_oracle(
    smollm2_dir: Path, template: str | None, oracle: Callable[[list[dict[str, str]]], list[tuple[str, bool]]]
) -> None:
    tokenizer = _with_template(smollm2_dir, template)

    @settings(deadline=None, max_examples=60)
    @given(turns=turns)
    def check(turns: list[tuple[str, str]]) -> None:
        messages = []
        for said, answered in turns:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": answered})
        ids, mask = _oracle(tokenizer, oracle(messages))
        (sequence,) = tokenise(tokenizer, {"messages": messages})
        assert sequence.token_ids_L.tolist() == ids
        assert sequence.target_mask_L.tolist() == mask

    check()


def _with_template(smollm2_dir: Path, template: str | None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return tokenizer


CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris.\nIt lies on the Seine."},
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "Rome"},
]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("llama3_training", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("qwen2_5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("phi3", "<|end|>"),
    ],
)
def test_assistant_turns_of_real_templates(smollm2_dir: Path, template: str | None, end: str) -> None:
    tokenizer = _with_template(smollm2_dir, template)
    (sequence,) = tokenise(tokenizer, {"messages": CHAT})
    spoken = tokenizer.decode(sequence.token_ids_L[1:][sequence.target_mask_L[:-1]])
    assert spoken == f"Paris.\nIt lies on the Seine.{end}Rome{end}"


def test_template_that_marks_turns_agrees_with_transformers(smollm2_dir: Path) -> None:
    tokenizer = _with_template(smollm2_dir, "llama3_training")
    theirs = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    (sequence,) = tokenise(tokenizer, {"messages": CHAT})
    assert sequence.token_ids_L.tolist() == theirs["input_ids"]
    assert sequence.target_mask_L.tolist() == [bool(mark) for mark in theirs["assistant_masks"][1:]] + [False]


def test_thoughts_belong_to_the_assistant(smollm2_dir: Path) -> None:
    tokenizer = _with_template(smollm2_dir, "qwen3")
    messages = [CHAT[0], {"role": "assistant", "reasoning_content": "France … Paris.", "content": "Paris."}]
    (sequence,) = tokenise(tokenizer, {"messages": messages})
    spoken = tokenizer.decode(sequence.token_ids_L[1:][sequence.target_mask_L[:-1]])
    assert "France … Paris." in spoken
    assert spoken.endswith("Paris.<|im_end|>")


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
