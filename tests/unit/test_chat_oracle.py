"""Chat rows compared with a reference implementation of three templates that marks each character."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_tools import template, with_special_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from logitcache.data.chat import ChatTemplate


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
    return encoded["input_ids"], [any(spoken[a:b]) for a, b in encoded["offset_mapping"]]


# Texts may hold what the templates write themselves.
WRITTEN = ["<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "<end_of_turn>\n", "<start_of_turn>model\n"]
letters = st.text(
    st.sampled_from("abc de.\n<>|{}éß日") | st.characters(codec="utf-8", exclude_categories=["Co"]), min_size=1
)
words = st.lists(letters | st.sampled_from(WRITTEN), min_size=1, max_size=3).map("".join)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@pytest.mark.parametrize(("name", "oracle"), [(None, _chatml), ("llama3", _llama3), ("gemma", _gemma)])
def test_chat_masks_equal_the_oracle(
    smollm2_dir: Path, name: str | None, oracle: Callable[[list[dict[str, str]]], list[tuple[str, bool]]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir) if name is None else with_special_tokens(smollm2_dir)
    chat = ChatTemplate(tokenizer, template=template(name) if name else None)

    @settings(deadline=None, max_examples=60)
    @given(turns=turns)
    def check(turns: list[tuple[str, str]]) -> None:
        messages = []
        for said, answered in turns:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": answered})
        ids, mask = _oracle(tokenizer, oracle(messages))
        row = chat.encode(messages, 0, "row 1")
        assert row.token_ids == ids
        assert row.is_target_L.tolist() == mask

    check()
