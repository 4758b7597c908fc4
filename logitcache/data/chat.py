"""Chat rows through the tokenizer's own template, and which of their tokens the assistant speaks.

A template that marks the assistant's words itself (``{% generation %}``) is taken at its word. For the others each
assistant turn is rendered once more with its words replaced by a mark that no text holds: where the two renderings
differ, the assistant speaks. That also serves templates that treat the last turn in a way of its own.
"""

from __future__ import annotations

import re
from typing import Any

from logitcache.errors import DataError

Message = dict[str, Any]

# Private-use code points: no template writes them, and no text that means something to others holds them.
_MARK = "\U000f1e61\U000f1e62"


class ChatTemplate:
    """A fast tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self._marks_assistant = isinstance(template, str) and bool(re.search(r"\{%-?\s*generation\s*-?%\}", template))
        self._special = set(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def encode(self, messages: list[Message], supervised_from: int, where: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and for each whether it belongs to a supervised assistant turn.

        A turn's end-of-turn token is part of it: the student has to learn to stop.

        Args:
            messages: ``{"role": ..., "content": ...}`` each.
            supervised_from: index of the first message whose assistant turns count.
            where: names the row in errors.

        Raises:
            DataError: no template, or one that can't render these messages.
        """
        text = self._render(messages, where)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = list(encoded["input_ids"])
        offsets: list[tuple[int, int]] = list(encoded["offset_mapping"])
        is_assistant = [False] * len(ids)
        for start, stop in self._spans(messages, supervised_from, text, where):
            after = 0
            for i, (a, b) in enumerate(offsets):
                if a < stop and b > start:
                    is_assistant[i] = True
                if a < stop:
                    after = i + 1
            if not self._marks_assistant and after < len(ids) and ids[after] in self._special:
                is_assistant[after] = True
        return ids, is_assistant

    def encode_prompt(self, messages: list[Message], where: str) -> list[int]:
        """Token ids of a conversation up to where the assistant begins its next turn.

        Raises:
            DataError: no template, or one that can't render these messages.
        """
        text = self._render(messages, where, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _spans(self, messages: list[Message], supervised_from: int, text: str, where: str) -> list[tuple[int, int]]:
        """Character ranges of the supervised assistant turns in the rendered text."""
        turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        wanted = [i for i in turns if i >= supervised_from]
        if not self._marks_assistant:
            return [self._difference(messages, i, text, where) for i in wanted]
        spans = self._marked_spans(messages)
        if len(spans) != len(turns) and len(wanted) != len(turns):
            raise DataError(f"{where}: the chat template marks {len(spans)} spans for {len(turns)} assistant turns")
        return spans[len(turns) - len(wanted) :]

    def _difference(self, messages: list[Message], turn: int, text: str, where: str) -> tuple[int, int]:
        content: Any = _MARK
        if isinstance(messages[turn].get("content"), list):
            content = [{"type": "text", "text": _MARK}]
        marked_turn = {"role": "assistant", "content": content}
        marked = self._render([*messages[:turn], marked_turn, *messages[turn + 1 :]], where)
        if _MARK not in marked:
            raise DataError(f"{where}: the chat template leaves out what the assistant says in message {turn + 1}")
        start = _common(text, marked)
        stop = len(text) - _common(text[start:][::-1], marked[start:][::-1])
        return start, stop

    def _marked_spans(self, messages: list[Message]) -> list[tuple[int, int]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=self._tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        return [(int(start), int(stop)) for start, stop in rendered[1][0]]

    def _render(self, messages: list[Message], where: str, *, add_generation_prompt: bool = False) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(f"{where}: the teacher's tokenizer has no chat template, which rows of messages need")
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:
            raise DataError(f"{where}: the chat template can't render these messages: {error}") from error
        assert isinstance(text, str)
        return text


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
