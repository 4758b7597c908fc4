"""What of a conversation a chat template leaves out.

Templates drop things without a word: roles they don't know, the reasoning of earlier turns, calls beside a content.
A message's texts are looked for in what the template wrote, white space aside, as they are or as JSON spells them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from logitcache.data.chat_messages import Message


def left_out(text: str, messages: Sequence[Message], stretches: Sequence[tuple[int, int] | None]) -> list[str]:
    """Notes on what isn't in the text; each wording once.

    Args:
        text: the conversation as rendered.
        messages: as the template was given them.
        stretches: where each stands in ``text``; None where that isn't known.
    """
    whole = _Squeezed(text)
    notes: dict[str, None] = {}
    for message, place in zip(messages, stretches, strict=True):
        own = _Squeezed(text[slice(*place)]) if place else whole
        said = _texts(message.get("content"))
        if message["role"] != "assistant":
            if not all(own.holds(part) or whole.holds(part) for part in said):
                what = "changes the text" if place else "leaves out a message"
                notes[f"the chat template {what} of role {message['role'][:40]!r}"] = None
            continue
        if not all(own.holds(part) for part in said):
            notes["the chat template leaves out part of an assistant's message"] = None
        if not own.holds(message.get("reasoning_content")):
            notes["the chat template leaves out an assistant's reasoning"] = None
        if not all(own.holds(call["function"]["name"]) for call in message.get("tool_calls", [])):
            notes["the chat template leaves out an assistant's tool call"] = None
    return list(notes)


class _Squeezed:
    """A text without its white space."""

    def __init__(self, text: str) -> None:
        self._given = text

    @cached_property
    def _text(self) -> str:
        return _squeeze(self._given)

    def holds(self, sought: Any) -> bool:
        if not isinstance(sought, str):
            return True
        return _squeeze(sought) in self._text or any(
            _squeeze(json.dumps(sought.strip(), ensure_ascii=ascii)[1:-1]) in self._text for ascii in (False, True)
        )


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _texts(content: Any) -> list[str]:
    if isinstance(content, list):
        return [part["text"] for part in content if isinstance(part, dict) and "text" in part]
    return [content] if isinstance(content, str) else []
