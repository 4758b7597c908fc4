"""Targets of chat rows against TRL's training templates, which mark what the assistant says.

Each of TRL's public templates is taken as it is, and its training twin tells which characters are the assistant's. The
twins also mark white space after the end of a turn, and some mark (part of) the generation prompt: neither is a target
here, and neither counts as a difference.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_tools import trl_templates, with_special_tokens

from logitcache.data.chat import ChatTemplate
from logitcache.errors import RowError

CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
ANSWER = {"role": "tool", "content": "22 degrees", "name": "weather", "tool_call_id": "call12345"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "City"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}
USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "Four"}

ROWS: dict[str, list[dict[str, Any]]] = {
    "one": [USER, FOUR],
    "several": [USER, FOUR, {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "Six"}],
    "system": [{"role": "system", "content": "Be short."}, USER, FOUR],
    "reasoning": [USER, {**FOUR, "reasoning_content": "Two and two."}],
    "tool": [USER, {"role": "assistant", "tool_calls": [CALL]}, ANSWER, {"role": "assistant", "content": "Warm"}],
}

# Rows whose targets are others than the twin's, and why.
_NO_CALLS = "the template leaves out the call, so that an empty answer is left, which isn't learnt here"
DIFFERENT = {
    ("deepseek_r1_distill", "tool"): _NO_CALLS,
    ("lfm2", "tool"): _NO_CALLS + " (it writes null)",
    ("llama3", "tool"): _NO_CALLS,
    ("phi3", "tool"): _NO_CALLS,
    ("phi3_5", "tool"): _NO_CALLS,
    ("qwen2_5_vl", "tool"): _NO_CALLS,
    ("diffusion_gemma", "tool"): "the twin leaves out <|tool_response>, which ends the model's call, and <|turn>model, "
    "which the generation prompt doesn't say after a tool's answer",
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return with_special_tokens(smollm2_dir)


def _texts(tokenizer: Any, source: str, messages: list[dict[str, Any]], tools: Any) -> tuple[str, list[Any]]:
    """A row as transformers renders it, in the first form that the template accepts, and the marked spans."""
    from transformers.utils.chat_template_utils import render_jinja_template

    in_parts = [
        {**each, "content": [{"type": "text", "text": each["content"]}] if "content" in each else []}
        for each in messages
    ]
    bare = [{"content": None, **each} for each in messages]
    as_json = [
        {**each, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]}
        if "tool_calls" in each
        else each
        for each in bare
    ]
    empty = [{"content": "", **each} for each in messages]
    wants_parts = re.search(r"message\['content'\]\[0\]\['text'\]|for line in message\['content'\]", source)
    for spelled in [in_parts] if wants_parts else [messages, bare, empty, as_json]:
        try:
            texts, spans = render_jinja_template(
                [spelled], tools=tools, chat_template=source, return_assistant_tokens_mask=True,
                **tokenizer.special_tokens_map,
            )  # fmt: skip
        except Exception:  # noqa: BLE001
            continue
        return texts[0], spans[0]
    return "", []


def _differs(tokenizer: Any, text: str, ours: np.ndarray, theirs: np.ndarray, prompts: list[str]) -> bool:
    """True if the masks differ in more than white space and the generation prompt."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if (ours & ~theirs).any():
        return True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], theirs & ~ours, [0]]).astype(int)))
    for first, last in edges.reshape(-1, 2):
        begin, end = offsets[first][0], offsets[last - 1][1]
        is_opening = last < len(ours) and ours[last] and any(prompt.startswith(text[:end]) for prompt in prompts)
        if text[begin:end].strip() and not is_opening:
            return True
    return False


def test_targets_equal_the_training_templates(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compared, different = 0, {}
    for path in sorted(trl_templates().glob("*_training.jinja")):
        name = path.stem.removesuffix("_training")
        source = path.with_name(f"{name}.jinja").read_text()
        chat = ChatTemplate(tokenizer, template=source)
        for kind, messages in ROWS.items():
            tools = [TOOL] if kind == "tool" else None
            twin, spans = _texts(tokenizer, path.read_text(), messages, tools)
            try:
                row = chat.encode(messages, 0, "row 1", tools=tools)
            except RowError:
                assert not _texts(tokenizer, source, messages, tools)[0], (name, kind)
                continue
            text = tokenizer.decode(row.token_ids, clean_up_tokenization_spaces=False)
            dated = re.sub(r"(Current date: )\d{4}-\d\d-\d\d", r"\g<1>2024-07-26", twin)
            # GLM's twin ends each text with the token that ends the turn; its original does not.
            if not dated.startswith(text) or dated.removeprefix(text) not in ("", "<|user|>"):
                continue
            compared += 1
            said = np.zeros(len(text) + 1, dtype=bool)
            for start, stop in spans:
                said[start:stop] = True
            offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            theirs = np.asarray([said[start:stop].any() for start, stop in offsets])
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            prompts = [tokenizer.decode(chat.encode_prompt(messages[:i], "row 1", tools=tools)) for i in turns]
            if _differs(tokenizer, text, row.is_target_L, theirs, prompts):
                different[name, kind] = text
    with capsys.disabled():
        print(f"\n{compared - len(different)} of {compared} chat rows have the targets of TRL's training templates")
    assert different.keys() == DIFFERENT.keys()
    assert compared - len(different) >= 130
