"""Find the parts of a conversation that a chat template leaves out.

Templates leave out parts without an error: unknown roles, the reasoning of earlier turns, tool calls of a message that
also has a content. Each text of a message is searched for in the template's output, without white space, as it is and
as a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitcache.data.chat.messages import Message
from logitcache.data.shorten import shorten


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The parts that aren't in the text.

    Attributes:
        notes: one for each kind of part that is left out.
        empty_turns: messages of the assistant that have a text, but nothing of it is left. As a target such a turn
            would teach an empty answer.
    """

    notes: list[str]
    empty_turns: set[int]


def find_left_out(text: str, messages: Sequence[Message], message_spans: Sequence[tuple[int, int] | None]) -> LeftOut:
    """Compare the messages with the text that a template made from them.

    Args:
        text: the conversation as rendered.
        messages: the messages that the template got.
        message_spans: begin and end of each message in ``text``; None if they aren't known.
    """
    whole = _WithoutSpaces(text)
    notes: dict[str, None] = {}
    empty: set[int] = set()
    for i, (message, place) in enumerate(zip(messages, message_spans, strict=True)):
        own = _WithoutSpaces(text[slice(*place)]) if place else whole
        if message["role"] != "assistant":
            if not all(own.holds(part) or whole.holds(part) for part in _texts(message.get("content"))):
                what = "changes the text of a message" if place else "leaves out a message"
                notes[f"the chat template {what} of role {shorten(message['role'])!r}"] = None
            continue
        said = [(part, "part of an assistant's message") for part in _texts(message.get("content"))]
        said += [(message.get("reasoning_content", ""), "an assistant's reasoning")]
        said += [(call["function"]["name"], "an assistant's tool call") for call in message.get("tool_calls", [])]
        said = [(part, what) for part, what in said if isinstance(part, str) and part.strip()]
        missing = [what for part, what in said if not own.holds(part)]
        notes.update({f"the chat template leaves out {what}": None for what in missing})
        lines = [line for part, _ in said for line in part.splitlines() if line.strip()]
        if missing and not any(own.holds(line) for line in lines):
            empty.add(i)
            notes["an assistant's turn of which the chat template leaves nothing isn't learnt"] = None
    return LeftOut(list(notes), empty)


class _WithoutSpaces:
    """A text without white space, to search in."""

    def __init__(self, text: str) -> None:
        self._given = text

    @cached_property
    def _text(self) -> str:
        return _remove_spaces(self._given)

    def holds(self, wanted: str) -> bool:
        return _remove_spaces(wanted) in self._text or any(
            _remove_spaces(json.dumps(wanted.strip(), ensure_ascii=ascii)[1:-1]) in self._text
            for ascii in (False, True)
        )


def _remove_spaces(text: str) -> str:
    return "".join(text.split())


def _texts(content: Any) -> list[str]:
    if isinstance(content, list):
        return [part["text"] for part in content]
    return [content] if isinstance(content, str) else []
