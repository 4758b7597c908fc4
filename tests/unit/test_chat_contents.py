"""Contents of messages: parts, BOS in their text; and messages and templates that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_tools import CHAT, chat, shown, targets, with_special_tokens
from transformers import AutoTokenizer

from logitcache.data.chat import ChatTemplate
from logitcache.errors import DataError, RowError


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return with_special_tokens(smollm2_dir)


def test_content_parts(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"text": "of France?", "image": None}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": ["Paris"]}]
    row = chat(tokenizer, "qwen2_5").encode(messages, 0, "row 1")
    assert "What is the capital\nof France?<|im_end|>" in tokenizer.decode(row.token_ids)
    assert targets(tokenizer, row) == ["Paris<|im_end|>"]
    assert row.notes == ("text parts of a message were joined by line breaks, because the chat template takes text",)
    # This template loops over the parts, and writes nothing for a text.
    for spelled in (messages, [{"role": "user", "content": "Capital?"}, messages[1]]):
        row = chat(tokenizer, "smolvlm").encode(spelled, 0, "row 1")
        assert targets(tokenizer, row) == [" Paris<end_of_utterance>"]
        assert row.notes == ()
    picture = [{"type": "image_url", "image_url": {"url": "x.png"}}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(RowError, match="row 1: message 1: its content has a part of type 'image_url'; only text"):
        chat(tokenizer, "smolvlm").encode([{"role": "user", "content": picture}, messages[1]], 0, "row 1")


def test_bos_is_not_written_twice(tokenizer: Any) -> None:
    bos = tokenizer.bos_token
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    template = ChatTemplate(tokenizer, template=source)
    row = template.encode([{"role": "user", "content": f"{bos}Hi"}, {"role": "assistant", "content": "Hello"}], 0, "r")
    assert shown(tokenizer, row) == f"{bos}Hi</s>⟦Hello</s>⟧"
    assert row.notes == ("the text began with BOS twice, because the template and the row both write it; one is kept",)
    assert tokenizer.decode(template.encode_prompt([{"role": "user", "content": f"{bos}Hi"}], "r")) == f"{bos}Hi</s>"
    # A template that means to write it twice may.
    assert chat(tokenizer, "lfm2").encode(CHAT, 0, "r").notes == ()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            {"role": "user", "content": "\ud83d"},
            r"row 1: message 1: the text holds half of a surrogate pair \(\\ud83d\)",
        ),
        ({"content": "Hi"}, "row 1: message 1: has no role; its keys are content"),
        ({"role": "user", "content": 7}, "row 1: message 1: its content must be text .*, not int"),
        ("Hi", "row 1: message 1: must be a mapping with role and content, not str"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "row 1: message 1: a tool call has no function name"),
        ({"role": "system", "content": "Hi"}, "row 1: the chat template can't render .*: System role not supported"),
    ],
)
def test_messages_that_are_refused(tokenizer: Any, message: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        chat(tokenizer, "gemma").encode([message, *CHAT], 0, "row 1")


def test_tokenizers_and_templates_that_are_refused(smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    with pytest.raises(DataError, match="the chat template isn't valid Jinja"):
        ChatTemplate(tokenizer, template="{% for %}")
    with pytest.raises(DataError, match="doesn't read 'loud'; it reads no variables"):
        ChatTemplate(tokenizer, template="{{ messages }}", arguments={"loud": True})
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ tools }}{{ messages }}"}
    with pytest.raises(DataError, match=r"several chat templates \(rag, tool_use\) .*give the one .* --chat-template"):
        ChatTemplate(tokenizer).encode(CHAT, 0, "row 1")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"row 1: the teacher's tokenizer has no chat template.* --chat-template"):
        ChatTemplate(tokenizer).encode(CHAT, 0, "row 1")
