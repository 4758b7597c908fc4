"""Random conversations give a row or one clear error, and the fast method finds the same targets as the exact one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_tools import chat, template, with_special_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.data.chat import ChatTemplate, from_sharegpt
from logitcache.data.chat.messages import normalise
from logitcache.data.chat.targets import TurnFinder
from logitcache.data.chat.template import Template
from logitcache.errors import LogitCacheError, RowError

NAMES = ["qwen2_5", "qwen3", "gptoss", "gemma", "gemma4_v5", "deepseek_r1_distill", "cohere2", "glm4moe", "smolvlm"]

# Texts that templates search for or write, as part of messages.
TRICKY = ["<|im_end|>", "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "</think>", "<end_of_turn>\n", "/nothink"]
TRICKY += ["<|return|>", "<tool_response>", "</s>", "<｜Assistant｜>", "{{ 1 }}", "\U000f1e00", "日本", "é\u0301"]

texts = st.lists(st.sampled_from([*TRICKY, "", " ", "a", "Hello.", "\n"]) | st.text(max_size=6), max_size=4).map(
    "".join
)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return with_special_tokens(smollm2_dir)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Turns of a user and the assistant, with tool calls and reasoning. Many templates accept them."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for number in range(draw(st.integers(1, 5))):
        messages.append({"role": "user", "content": draw(texts)})
        if draw(st.integers(0, 3)) == 0:
            call = {"id": f"call{number}", "function": {"name": "search", "arguments": {"words": draw(texts)}}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "content": draw(texts), "tool_call_id": f"call{number}", "name": "search"})
        thought = {"reasoning_content": draw(texts)} if draw(st.integers(0, 3)) == 0 else {}
        messages.append({"role": "assistant", "content": draw(texts), **thought})
    return messages


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_method_equals_the_exact_one(tokenizer: Any, name: str) -> None:
    compiled = Template(template(name), tokenizer.special_tokens_map)
    specials = tokenizer.all_special_tokens

    def spans(messages: list[dict[str, Any]], exact: bool) -> list[tuple[int, int]] | str:
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            finder = TurnFinder(compiled, messages, {}, specials=specials, where="row 1", exact=exact)
        except Exception as error:  # noqa: BLE001
            return f"the template refuses: {error}"
        try:
            return finder.target_spans(turns)
        except RowError as error:
            return str(error)

    @settings(deadline=None, max_examples=30)
    @given(messages=conversations())
    def check(messages: list[dict[str, Any]]) -> None:
        spelled = normalise(messages, "row 1", takes_text=name != "smolvlm", takes_parts=name == "smolvlm").messages
        assert spans(spelled, exact=False) == spans(spelled, exact=True)

    check()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name"]), inner),
    max_leaves=4,
)
keys = st.sampled_from(["role", "content", "tool_calls", "reasoning_content", "weight", "train", "function_call", "x"])
odd_messages = st.lists(
    st.dictionaries(keys, anything, max_size=4)
    | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", "critic"]), "content": anything}),
    max_size=5,
)


@pytest.mark.parametrize("name", ["qwen3", "gemma4_v5", "smolvlm"])
def test_unusual_rows_are_accepted_or_refused(tokenizer: Any, name: str) -> None:
    template = chat(tokenizer, name)

    @settings(deadline=None, max_examples=60)
    @given(messages=odd_messages | conversations(), tools=anything, extra=st.dictionaries(keys, anything, max_size=2))
    def check(messages: list[Any], tools: Any, extra: dict[str, Any]) -> None:
        try:
            row = template.encode(messages, 0, "row 1", tools=tools, extra=extra)
        except LogitCacheError as error:
            refusal = str(error)
        else:
            assert len(row.token_ids) == len(row.is_target_L)
            speaks = any(message["role"] == "assistant" for message in messages)
            assert speaks or not row.is_target_L.any()
            return
        assert refusal.startswith("row 1")
        assert len(refusal.splitlines()) == 1

    check()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_unusual_sharegpt_rows_are_accepted_or_refused(data: st.DataObject) -> None:
    items = data.draw(st.lists(st.dictionaries(st.sampled_from(["from", "value", "weight"]), anything) | anything))
    try:
        messages = from_sharegpt(items)
    except RowError:
        return
    assert len(messages) == len(items)


def test_sharegpt() -> None:
    items = [
        {"from": "system", "value": "Be short."},
        {"from": "human", "value": "Hi", "weight": 0},
        {"from": "gpt", "value": "Hello", "loss": False},
        {"from": "function_call", "value": '{"name": "f"}'},
        {"from": "observation", "value": "1"},
    ]
    messages = from_sharegpt(items)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "assistant", "tool"]
    assert [message["content"] for message in messages] == [item["value"] for item in items]
    assert messages[2]["loss"] is False
    with pytest.raises(RowError, match="row 3: message 1: is from 'narrator'; known are human,"):
        from_sharegpt([{"from": "narrator", "value": "Once"}], "row 3")


def test_the_cost_grows_with_the_length(tokenizer: Any) -> None:
    """A thousand turns need no more renderings than ten."""
    renderings = []
    for turns in (10, 1000):
        compiled = Template(template("qwen3"), tokenizer.special_tokens_map)
        counted, render = [0], compiled.render_with_spans

        def count(*args: Any, counted: list[int] = counted, render: Any = render, **options: Any) -> Any:
            counted[0] += 1
            return render(*args, **options)

        compiled.render_with_spans = count  # type: ignore[method-assign]
        said = [(f"Question {i}", f"Answer {i}") for i in range(turns)]
        messages = [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        finder = TurnFinder(compiled, messages, {}, specials=tokenizer.all_special_tokens, where="row 1")
        assert len(finder.target_spans(range(1, 2 * turns, 2))) == turns
        renderings.append(counted[0])
    assert renderings[0] == renderings[1]


def test_the_tokenizer_chooses_the_chat_template(tokenizer: Any) -> None:
    """Some tokenizers have a second template, for rows with tools."""
    tokenizer.chat_template = {"default": template("gemma"), "tool_use": template("qwen2_5")}
    try:
        own = ChatTemplate(tokenizer)
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
        assert "<start_of_turn>" in tokenizer.decode(own.encode(messages, 0, "r").token_ids)
        assert "<|im_start|>user" in tokenizer.decode(own.encode(messages, 0, "r", tools=[tool]).token_ids)
    finally:
        tokenizer.chat_template = None
