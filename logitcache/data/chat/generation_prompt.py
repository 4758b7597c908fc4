"""Find the generation prompt before a turn: the text that a chat template writes to begin the assistant's turn.

The messages before the turn are rendered with the generation prompt. If the whole text begins with that rendering, the
prompt is the part of it from the turn on. Some templates write earlier messages in another way when later ones follow.
Then the last message before the turn is aligned with the same message in the whole text. If that isn't possible, the
prompt is what this rendering has and the one without a generation prompt doesn't have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logitcache.data.chat.messages import Message
from logitcache.data.chat.template import Rendering, Template


def find_generation_prompt(
    template: Template, messages: list[Message], variables: Mapping[str, Any], whole: Rendering, turn: int
) -> str | None:
    """The generation prompt before message ``turn``, from the point where that message's own text begins.

    Args:
        template: the compiled template.
        messages: the whole conversation.
        variables: the template's other variables.
        whole: the conversation's rendering, with a span for message ``turn``.
        turn: index of the assistant's message.

    Returns:
        None if it can't be found.
    """
    place = whole.message_spans[turn]
    assert place is not None
    try:
        before = messages[:turn]
        prompt = template.render_with_spans(before, variables, prompt=True)
    except Exception:  # noqa: BLE001
        # Many templates can't begin with the assistant. They begin its turn as they do after a user's message.
        before = [_some_user(messages)]
        return _added_text(template, before, variables)
    if prompt is None:
        return None
    if whole.text.startswith(prompt.text):
        return prompt.text[place[0] :]
    last = _last_placed(prompt)
    if last is not None:
        new, old = prompt.message_spans[last], whole.message_spans[last]
        if new and old and whole.text.startswith(prompt.text[new[0] :], old[0]):
            return prompt.text[new[0] + place[0] - old[0] :]
    return _added_text(template, before, variables)


def _added_text(template: Template, before: list[Message], variables: Mapping[str, Any]) -> str | None:
    """The text that the generation prompt adds to a rendering."""
    try:
        prompt = template.render_with_spans(before, variables, prompt=True)
        plain = template.render_with_spans(before, variables)
    except Exception:  # noqa: BLE001
        return None
    if prompt is None or plain is None:
        return None
    last = _last_placed(prompt)
    if last is None:
        return prompt.text[len(plain.text) :] if prompt.text.startswith(plain.text) else None
    with_prompt, without = prompt.message_spans[last], plain.message_spans[last]
    if with_prompt is None or without is None:
        return None
    # Some templates write the generation prompt in the last iteration of their loop, others after the loop.
    ours, theirs = prompt.text[slice(*with_prompt)], plain.text[slice(*without)]
    return prompt.text[with_prompt[0] + len(theirs) :] if ours.startswith(theirs) else None


def _last_placed(rendering: Rendering) -> int | None:
    return next((i for i in reversed(range(len(rendering.message_spans))) if rendering.message_spans[i]), None)


def _some_user(messages: list[Message]) -> Message:
    content: Any = "Hello"
    if any(isinstance(message.get("content"), list) for message in messages):
        content = [{"type": "text", "text": content}]
    return {"role": "user", "content": content}
