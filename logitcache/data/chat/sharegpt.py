"""Convert share-GPT conversations (``from`` and ``value``) to messages (``role`` and ``content``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from logitcache.data.chat.messages import Message
from logitcache.data.shorten import shorten
from logitcache.errors import RowError

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def from_sharegpt(items: Iterable[Any], where: str = "the row") -> list[Message]:
    """Convert items with ``from`` and ``value`` to messages with ``role`` and ``content``; other keys stay.

    A ``function_call`` becomes an assistant's message with the call as its text.

    Args:
        items: mappings.
        where: names the row in errors.

    Raises:
        RowError: an item has no ``from``, or an unknown one.
    """
    messages: list[Message] = []
    for number, item in enumerate(items, 1):
        speaker = item.get("from") if isinstance(item, Mapping) else None
        if not isinstance(speaker, str):
            raise RowError(f"{where}: message {number}: does not say who it is from")
        role = _ROLES.get(speaker.strip().lower())
        if role is None:
            raise RowError(
                f"{where}: message {number}: is from {shorten(repr(speaker))}; known are {', '.join(_ROLES)}"
            )
        rest = {key: value for key, value in item.items() if key not in ("from", "value")}
        messages.append({**rest, "role": role, "content": item.get("value")})
    return messages
