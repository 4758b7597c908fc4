"""Group turns whose generation prompt should be the same.

The generation prompt depends on the messages before it. Rendering them for every turn costs the square of their number.
So turns are put into kinds. Two turns are of one kind if the messages since the assistant's last turn have the same
roles and keys, and if the same texts that the template searches for (such as ``/no_think``) occur, the latest ones in
the same order. The prompt is rendered for the first turn of a kind. The text of the other turns must agree with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from logitcache.data.chat.messages import Message


def turn_kinds(messages: Sequence[Message], searched_texts: Sequence[str]) -> list[Hashable]:
    """For each message, the kind of the messages before it."""
    kinds: list[Hashable] = []
    latest: tuple[str, ...] = ()
    since: tuple[Hashable, ...] = ("first",)
    for message in messages:
        kinds.append((since, latest))
        texts = list(_texts(message))
        found = tuple(wanted for wanted in searched_texts if any(wanted in text for text in texts))
        if found:
            latest = (*(wanted for wanted in latest if wanted not in found), *found)
        shape = (message["role"], tuple(sorted(message)), found)
        since = (shape,) if message["role"] == "assistant" else (*since, shape)
    return kinds


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
