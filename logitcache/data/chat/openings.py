"""What a chat template writes to have the assistant begin a turn: the generation prompt, as it stands before the turn.

It is read off a rendering of the messages before the turn. Where the whole text begins with that rendering it is the
rest of it. Where the template treats earlier messages in another way once later ones are there, the message before the
turn is laid over the same message in the whole text; failing that, it is what the rendering has beyond the one without
a generation prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logitcache.data.chat.messages import Message
from logitcache.data.chat.template import Rendering, Template


def opening(
    template: Template, messages: list[Message], variables: Mapping[str, Any], whole: Rendering, turn: int
) -> str | None:
    """The generation prompt before message ``turn``, from where that message's own text begins.

    Args:
        template: the compiled template.
        messages: the whole conversation.
        variables: what else the template is given.
        whole: the conversation's rendering, which has a stretch for message ``turn``.
        turn: index of the assistant's message.

    Returns:
        None where it can't be told.
    """
    place = whole.stretches[turn]
    assert place is not None
    try:
        before = messages[:turn]
        prompt = template.rendering(before, variables, prompt=True)
    except Exception:  # noqa: BLE001
        # Many templates refuse to begin with the assistant; they open its turn as they do after a user's message.
        before = [_some_user(messages)]
        return _beyond(template, before, variables)
    if prompt is None:
        return None
    if whole.text.startswith(prompt.text):
        return prompt.text[place[0] :]
    last = _last_placed(prompt)
    if last is not None:
        new, old = prompt.stretches[last], whole.stretches[last]
        if new and old and whole.text.startswith(prompt.text[new[0] :], old[0]):
            return prompt.text[new[0] + place[0] - old[0] :]
    return _beyond(template, before, variables)


def _beyond(template: Template, before: list[Message], variables: Mapping[str, Any]) -> str | None:
    """What the generation prompt adds to a rendering."""
    try:
        prompt = template.rendering(before, variables, prompt=True)
        plain = template.rendering(before, variables)
    except Exception:  # noqa: BLE001
        return None
    if prompt is None or plain is None:
        return None
    last = _last_placed(prompt)
    if last is None:
        return prompt.text[len(plain.text) :] if prompt.text.startswith(plain.text) else None
    with_prompt, without = prompt.stretches[last], plain.stretches[last]
    if with_prompt is None or without is None:
        return None
    # Some templates write the generation prompt in the last round of their loop, others behind the loop.
    ours, theirs = prompt.text[slice(*with_prompt)], plain.text[slice(*without)]
    return prompt.text[with_prompt[0] + len(theirs) :] if ours.startswith(theirs) else None


def _last_placed(rendering: Rendering) -> int | None:
    return next((i for i in reversed(range(len(rendering.stretches))) if rendering.stretches[i]), None)


def _some_user(messages: list[Message]) -> Message:
    content: Any = "Hello"
    if any(isinstance(message.get("content"), list) for message in messages):
        content = [{"type": "text", "text": content}]
    return {"role": "user", "content": content}
