"""Turns that a chat template opens alike.

What a template writes as the generation prompt depends on the messages before it. Rendering these for every turn costs
the square of their number, so turns are put into kinds: equal roles and keys of the messages since the assistant spoke
last, and the same of the texts that the template looks for (``/no_think``), in the same order of their last use. The
prompt is rendered for the first turn of a kind; the others must still agree with it in the text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from logitcache.data.chat.messages import Message


def kinds_of(messages: Sequence[Message], looked_for: Sequence[str]) -> list[Hashable]:
    """For each message the kind of what comes before it."""
    kinds: list[Hashable] = []
    latest: tuple[str, ...] = ()
    since: tuple[Hashable, ...] = ("first",)
    for message in messages:
        kinds.append((since, latest))
        texts = list(_texts(message))
        found = tuple(sought for sought in looked_for if any(sought in text for text in texts))
        if found:
            latest = (*(sought for sought in latest if sought not in found), *found)
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
