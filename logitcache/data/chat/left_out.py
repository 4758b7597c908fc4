"""What of a conversation a chat template leaves out.

Templates drop things without a word: roles they don't know, the reasoning of earlier turns, calls beside a content.
A message's texts are looked for in what the template wrote, white space aside, as they are or as JSON spells them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitcache.data.chat.messages import Message
from logitcache.data.shown import shown


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What isn't in the text.

    Attributes:
        notes: on what is left out, each wording once.
        empty_turns: messages of the assistant that say something, of which nothing is left. Learning such a turn would
            teach an empty answer.
    """

    notes: list[str]
    empty_turns: set[int]


def left_out(text: str, messages: Sequence[Message], stretches: Sequence[tuple[int, int] | None]) -> LeftOut:
    """Compares the messages with the text that a template made of them.

    Args:
        text: the conversation as rendered.
        messages: as the template was given them.
        stretches: where each stands in ``text``; None where that isn't known.
    """
    whole = _Squeezed(text)
    notes: dict[str, None] = {}
    empty: set[int] = set()
    for i, (message, place) in enumerate(zip(messages, stretches, strict=True)):
        own = _Squeezed(text[slice(*place)]) if place else whole
        if message["role"] != "assistant":
            if not all(own.holds(part) or whole.holds(part) for part in _texts(message.get("content"))):
                what = "changes the text of a message" if place else "leaves out a message"
                notes[f"the chat template {what} of role {shown(message['role'])!r}"] = None
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


class _Squeezed:
    """A text without its white space."""

    def __init__(self, text: str) -> None:
        self._given = text

    @cached_property
    def _text(self) -> str:
        return _squeeze(self._given)

    def holds(self, sought: str) -> bool:
        return _squeeze(sought) in self._text or any(
            _squeeze(json.dumps(sought.strip(), ensure_ascii=ascii)[1:-1]) in self._text for ascii in (False, True)
        )


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _texts(content: Any) -> list[str]:
    if isinstance(content, list):
        return [part["text"] for part in content]
    return [content] if isinstance(content, str) else []
