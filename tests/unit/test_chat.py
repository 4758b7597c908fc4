"""Which tokens of a conversation are targets, for public templates, and what templates leave out without an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_tools import CHAT, chat, shown, targets, template, with_special_tokens
from transformers import AutoTokenizer

from logitcache.data.chat import ChatTemplate
from logitcache.errors import DataError, RowError

CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "22 degrees", "name": "weather", "tool_call_id": "call12345"},
    {"role": "assistant", "content": "Warm"},
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return with_special_tokens(smollm2_dir)


def test_the_tokens_are_those_of_apply_chat_template(smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    row = ChatTemplate(tokenizer).encode(CHAT, 0, "row 1")
    assert row.token_ids == tokenizer.apply_chat_template(CHAT)["input_ids"]
    assert row.notes == ()
    prompt = ChatTemplate(tokenizer).encode_prompt(CHAT[:3], "row 1")
    assert prompt == tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True)["input_ids"]
    assert row.token_ids[: len(prompt)] == prompt


# The opening and the end of a turn

TURNS = {
    "llama3": ["Paris.\nIt lies on the Seine.<|eot_id|>", "Rome<|eot_id|>"],
    "gemma": ["Paris.\nIt lies on the Seine.<end_of_turn>", "Rome<end_of_turn>"],
    "qwen2_5": ["Paris.\nIt lies on the Seine.<|im_end|>", "Rome<|im_end|>"],
    "qwen3": ["Paris.\nIt lies on the Seine.<|im_end|>", "<think>\n\n</think>\n\nRome<|im_end|>"],
    "phi3": ["Paris.\nIt lies on the Seine.<|end|>", "Rome<|end|>\n<|im_end|>"],
    "cohere2": [
        "Paris.\nIt lies on the Seine.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        "Rome<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ],
    "gptoss": [
        "<|channel|>final<|message|>Paris.\nIt lies on the Seine.<|end|>",
        "<|channel|>final<|message|>Rome<|return|>",
    ],
    "deepseek_r1_distill": ["Paris.\nIt lies on the Seine.<｜end▁of▁sentence｜>", "Rome<｜end▁of▁sentence｜>"],
    "glm4moe": ["\n<think></think>\nParis.\nIt lies on the Seine.<|user|>", "\n<think></think>\nRome"],
}


@pytest.mark.parametrize("name", TURNS)
def test_targets_are_what_the_model_must_produce(tokenizer: Any, name: str) -> None:
    row = chat(tokenizer, name).encode(CHAT, 0, "row 1")
    assert targets(tokenizer, row) == TURNS[name]
    no_end = ("the chat template writes no token that ends an assistant's turn",)
    assert row.notes == (no_end if name == "glm4moe" else ())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # Llama 2: the generation prompt is empty, the opening blank and the end token are the model's.
        (
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}",
            "[INST] Hi [/INST]⟦ Hello </s>⟧[INST] Bye [/INST]⟦ So long </s>⟧",
        ),
        # Zephyr: the generation prompt is written in the last round of the loop.
        (
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n"
            "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}",
            "<|user|>\nHi</s>\n<|assistant|>\n⟦Hello</s>⟧\n<|user|>\nBye</s>\n<|assistant|>\n⟦So long</s>⟧\n",
        ),
        # The end token is written before the next message, and behind the loop.
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% if not loop.first %}</s>{% endif %}U: {{ m.content }}\n"
            "{% else %}A: {{ m.content }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}A:{% else %}</s>{% endif %}",
            "U: Hi\nA:⟦ Hello</s>⟧U: Bye\nA:⟦ So long</s>⟧",
        ),
        # No end token: white space is all that ends the turn.
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "user: Hi\n\nassistant:⟦ Hello\n\n⟧user: Bye\n\nassistant:⟦ So long\n\n⟧",
        ),
        # No loop over the messages themselves: the text must grow with them.
        (
            "{% for i in range(messages|length) %}<|{{ messages[i].role }}|>{{ messages[i].content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "<|user|>Hi</s><|assistant|>⟦Hello</s>⟧<|user|>Bye</s><|assistant|>⟦So long</s>⟧",
        ),
        # The generation prompt opens a thought that the text doesn't have.
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
            "<|user|>Hi</s><|assistant|>⟦Hello</s>⟧<|user|>Bye</s><|assistant|>⟦So long</s>⟧",
        ),
    ],
)
def test_ways_to_begin_and_end_a_turn(tokenizer: Any, source: str, expected: str) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "So long")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert shown(tokenizer, ChatTemplate(tokenizer, template=source).encode(messages, 0, "row 1")) == expected


def test_a_turn_whose_position_is_not_clear_is_refused(tokenizer: Any) -> None:
    source = (
        "{% for i in range(messages|length) %}{% if i == messages|length - 1 %}last {% endif %}"
        "{{ messages[i].content }}</s>{% endfor %}"
    )
    with pytest.raises(RowError, match=r"row 1: .* doesn't show where the assistant's turn in message 2 begins"):
        ChatTemplate(tokenizer, template=source).encode(CHAT, 0, "row 1")


def test_the_assistant_may_be_first(tokenizer: Any) -> None:
    row = chat(tokenizer, "qwen3_5_think").encode([*CHAT[1:3], CHAT[3]], 0, "row 1")
    assert targets(tokenizer, row)[0] == "Paris.\nIt lies on the Seine.<|im_end|>"


def test_marks_of_a_training_template_agree(tokenizer: Any) -> None:
    own = chat(tokenizer, "llama3_training").encode(CHAT, 0, "row 1")
    theirs = tokenizer.apply_chat_template(
        CHAT, chat_template=template("llama3_training"), return_assistant_tokens_mask=True
    )
    assert own.token_ids == theirs["input_ids"]
    assert own.is_target_L.tolist() == [bool(mark) for mark in theirs["assistant_masks"]]


# Which turns


def test_only_the_selected_turns_are_targets(tokenizer: Any) -> None:
    assert targets(tokenizer, chat(tokenizer, "qwen2_5", turns="last").encode(CHAT, 0, "r")) == ["Rome<|im_end|>"]
    assert targets(tokenizer, chat(tokenizer, "qwen2_5").encode(CHAT, 3, "r")) == ["Rome<|im_end|>"]
    assert not chat(tokenizer, "qwen2_5").encode(CHAT[:1], 0, "r").is_target_L.any()


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0, "train": None}])
def test_a_message_that_is_not_to_be_trained_on(tokenizer: Any, mark: dict[str, Any]) -> None:
    row = chat(tokenizer, "qwen2_5").encode([CHAT[0], {**CHAT[1], **mark}, *CHAT[2:]], 0, "row 1")
    assert targets(tokenizer, row) == ["Rome<|im_end|>"]
    assert row.token_ids == chat(tokenizer, "qwen2_5").encode(CHAT, 0, "row 1").token_ids


def test_weights_are_0_or_1_and_null_is_none(tokenizer: Any) -> None:
    template = chat(tokenizer, "qwen2_5")
    weighed = [{**message, "weight": None if i % 2 else 1} for i, message in enumerate(CHAT)]
    row = template.encode(weighed, 0, "row 1")
    assert targets(tokenizer, row) == TURNS["qwen2_5"]
    assert row.notes == (
        "a message that isn't the assistant's is marked for training; only the assistant's are targets",
    )
    with pytest.raises(RowError, match=r"row 1: message 2: weight is 0\.5; .* must be 0 or 1"):
        template.encode([CHAT[0], {**CHAT[1], "weight": 0.5}], 0, "row 1")


# Tools and reasoning


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'),
        ("gptoss", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'),
        ("gemma4_v5", '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_response>'),
    ],
)
def test_calls_are_targets_and_what_tools_answer_is_not(tokenizer: Any, name: str, call: str) -> None:
    row = chat(tokenizer, name).encode(CALLS, 0, "row 1")
    first, last = targets(tokenizer, row)
    assert first == call
    assert "Warm" in last
    assert "22 degrees" in tokenizer.decode(row.token_ids)
    assert row.notes == ()


def test_the_tools_of_a_row_reach_the_template(tokenizer: Any) -> None:
    schema = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
    template = chat(tokenizer, "qwen2_5")
    wrapped = [{"type": "function", "function": {**schema, "strict": None}}]
    rows = [template.encode(CALLS, 0, "r", tools=tools) for tools in (wrapped, [schema], f"[{json.dumps(schema)}]")]
    assert "The weather." in tokenizer.decode(rows[0].token_ids)
    assert all(row.token_ids == rows[0].token_ids for row in rows)
    assert template.encode(CALLS, 0, "r", tools=[]).token_ids == template.encode(CALLS, 0, "r").token_ids
    assert "The weather." in tokenizer.decode(template.encode_prompt(CALLS[:1], "r", tools=[schema]))
    assert chat(tokenizer, "gemma").encode(CHAT, 0, "r", tools=[schema]).notes == (
        "the chat template doesn't read the row's tools",
    )
    with pytest.raises(RowError, match="row 1: the tools are text that isn't JSON"):
        template.encode(CALLS, 0, "row 1", tools="[{")


def test_reasoning_is_a_target_where_the_template_writes_it(tokenizer: Any) -> None:
    for key in ("reasoning_content", "thinking", "reasoning"):
        messages = [CHAT[0], {**CHAT[1], key: "France … Paris."}]
        row = chat(tokenizer, "qwen3").encode(messages, 0, "row 1")
        (said,) = targets(tokenizer, row)
        assert said == "<think>\nFrance … Paris.\n</think>\n\nParis.\nIt lies on the Seine.<|im_end|>"
        (said,) = targets(tokenizer, chat(tokenizer, "gptoss").encode(messages, 0, "row 1"))
        assert said.startswith("<|channel|>analysis<|message|>France … Paris.<|end|><|start|>assistant<|channel|>final")


def test_what_a_template_leaves_out_is_noted(tokenizer: Any) -> None:
    thought = {"role": "assistant", "content": "<think>\nSeine …\n</think>\n\nParis."}
    row = chat(tokenizer, "deepseek_r1_distill").encode([CHAT[0], thought], 0, "row 1")
    assert row.notes == ("the chat template leaves out part of an assistant's message",)
    assert targets(tokenizer, row) == ["\n\nParis.<｜end▁of▁sentence｜>"]
    critic = {"role": "critic", "content": "No."}
    row = chat(tokenizer, "phi3").encode([CHAT[0], {**CHAT[1], "reasoning": "Hm."}, critic], 0, "row 1")
    assert set(row.notes) == {
        "the chat template leaves out an assistant's reasoning",
        "the chat template leaves out a message of role 'critic'",
    }


def test_a_turn_that_is_left_out_is_no_target(tokenizer: Any) -> None:
    row = chat(tokenizer, "llama3").encode(CALLS, 0, "row 1")
    assert targets(tokenizer, row) == ["Warm<|eot_id|>"]
    assert row.notes == (
        "the chat template leaves out an assistant's tool call",
        "an assistant's turn of which the chat template leaves nothing isn't learnt",
    )


# Arguments and the date


def test_arguments_reach_the_template(tokenizer: Any) -> None:
    plain = chat(tokenizer, "qwen3").encode_prompt(CHAT[:1], "r")
    off = chat(tokenizer, "qwen3", arguments={"enable_thinking": False})
    assert tokenizer.decode(off.encode_prompt(CHAT[:1], "r")) == tokenizer.decode(plain) + "<think>\n\n</think>\n\n"
    assert targets(tokenizer, off.encode(CHAT[:2], 0, "r")) == ["Paris.\nIt lies on the Seine.<|im_end|>"]
    of_the_row = chat(tokenizer, "qwen3").encode_prompt(CHAT[:1], "r", extra={"enable_thinking": False})
    assert of_the_row == off.encode_prompt(CHAT[:1], "r")
    assert chat(tokenizer, "qwen3").encode(CHAT, 0, "r", extra={"think": 1}).notes == (
        "the chat template doesn't read the row's think",
    )
    with pytest.raises(DataError, match=r"the chat template doesn't read 'enable_thinkin'; it reads .*enable_thinking"):
        chat(tokenizer, "qwen3", arguments={"enable_thinkin": False})


def test_a_template_gets_a_fixed_date(tokenizer: Any) -> None:
    row = chat(tokenizer, "llama3_2").encode(CHAT, 0, "row 1")
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(row.token_ids)
    dated = chat(tokenizer, "gptoss", arguments={"date": "2025-03-01", "reasoning_effort": "high"})
    assert dated.date == "2025-03-01"
    text = tokenizer.decode(dated.encode(CHAT, 0, "row 1").token_ids)
    assert "Current date: 2025-03-01" in text
    assert "Reasoning: high" in text
    assert chat(tokenizer, "gptoss").date == "2024-07-26"
    assert chat(tokenizer, "qwen3").date is None
    with pytest.raises(DataError, match="must be YYYY-MM-DD, not 'yesterday'"):
        chat(tokenizer, "gptoss", arguments={"date": "yesterday"})
    with pytest.raises(DataError, match="doesn't read 'date'"):
        chat(tokenizer, "qwen3", arguments={"date": "2025-03-01"})
