"""Chat rows through the tokenizer's own template, and which of their tokens the assistant speaks.

A template that marks the assistant's words itself (``{% generation %}``) is taken at its word. For the others we render
the conversation up to each assistant turn and after it: what the turn adds is the assistant's.
"""

from __future__ import annotations

import re
from typing import Any

from logitcache.errors import DataError

Message = dict[str, Any]


class ChatTemplate:
    """A fast tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self._marks_assistant = isinstance(template, str) and bool(re.search(r"\{%-?\s*generation\s*-?%\}", template))

    def encode(self, messages: list[Message], supervised_from: int, where: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and for each whether it belongs to a supervised assistant turn.

        A turn's tokens run from the first after the template's assistant header to its end-of-turn token, which is
        part of it: the student has to learn to stop.

        Args:
            messages: ``{"role": ..., "content": ...}`` each.
            supervised_from: index of the first message whose assistant turns count.
            where: names the row in errors.

        Raises:
            DataError: no template, or one that can't render these messages or can't be taken apart.
        """
        text = self._render(messages, where)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = list(encoded["input_ids"])
        is_assistant = [False] * len(ids)
        for start, stop in self._spans(messages, supervised_from, text, where):
            inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if start < b and a < stop and a < b]
            for i in self._until_end_of_turn(inside, ids):
                is_assistant[i] = True
        return ids, is_assistant

    def _spans(self, messages: list[Message], supervised_from: int, text: str, where: str) -> list[tuple[int, int]]:
        """Character ranges of the supervised assistant turns in the rendered text."""
        if self._marks_assistant:
            return self._marked_spans(messages, supervised_from, where)
        spans = []
        for i, message in enumerate(messages):
            if message.get("role") != "assistant" or i < supervised_from:
                continue
            after = self._render(messages[: i + 1], where)
            start = self._start_of_turn(messages[:i], after, where)
            if start is None or not text.startswith(after):
                raise DataError(
                    f"{where}: the chat template rewrites earlier turns, so the assistant's words can't be found; "
                    "use --positions all, or one assistant turn a row"
                )
            spans.append((start, len(after)))
        return spans

    def _start_of_turn(self, before: list[Message], after: str, where: str) -> int | None:
        """Where an assistant turn's own words begin in ``after``; None if the template rewrote what came before.

        That is the end of the generation prompt. Some templates put more into that prompt than a turn that is given
        then begins with (an empty thought, say): then it is as far as the two agree.
        """
        if not before:
            return 0
        prompt = self._render(before, where, add_generation_prompt=True)
        start = next((i for i, (a, b) in enumerate(zip(prompt, after, strict=False)) if a != b), len(prompt))
        return start if start >= len(self._render(before, where)) else None

    def _marked_spans(self, messages: list[Message], supervised_from: int, where: str) -> list[tuple[int, int]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=self._tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        spans = [(int(start), int(stop)) for start, stop in rendered[1][0]]
        skipped = sum(message.get("role") == "assistant" for message in messages[:supervised_from])
        turns = sum(message.get("role") == "assistant" for message in messages)
        if len(spans) != turns and skipped:
            raise DataError(f"{where}: the chat template marks {len(spans)} spans for {turns} assistant turns")
        return spans[skipped:]

    def _until_end_of_turn(self, inside: list[int], ids: list[int]) -> list[int]:
        """Drop what the template puts after the last special token of a turn, such as a line break."""
        special = set(self._tokenizer.all_special_ids)
        for end in range(len(inside), 0, -1):
            if ids[inside[end - 1]] in special:
                return inside[:end]
        return inside

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
