"""Encode chat rows with a chat template, and mark the tokens that are targets.

Shape legend: L tokens of one conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from logitcache.data.chat.forms import TemplateForms, TemplateInput
from logitcache.data.chat.left_out import find_left_out
from logitcache.data.chat.messages import Message
from logitcache.data.chat.targets import TurnFinder
from logitcache.errors import DataError

_TWICE = "the text began with BOS twice, because the template and the row both write it; one is kept"


@dataclass(frozen=True, eq=False)
class ChatTokens:
    """The tokens of a conversation.

    Attributes:
        token_ids: ids of the whole conversation, L.
        is_target_L: bool, True where token ``t`` is a target.
        notes: what the user should know about the row, without its number, so that equal notes can be counted.
    """

    token_ids: list[int]
    is_target_L: NDArray[np.bool_]
    notes: tuple[str, ...]


class ChatTemplate:
    """A tokenizer's chat template.

    The text is tokenised as a whole. A token that begins inside the generation prompt and ends after it is a target:
    the model gets some of its characters, but has to predict the token.

    Args:
        tokenizer: a transformers tokenizer.
        template: text of a template that replaces the tokenizer's own.
        arguments: variables for the template, such as ``enable_thinking``. ``date`` (YYYY-MM-DD) replaces today's date,
            if the template writes it.
        turns: ``all`` makes every turn of the assistant a target, ``last`` only the last one.

    Raises:
        DataError: the template isn't valid, or doesn't read one of the arguments.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        turns: Literal["all", "last"] = "all",
    ) -> None:
        self._tokenizer = tokenizer
        self._turns = turns
        self._specials = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._specials += tuple(token for token in tokenizer.all_special_tokens if token not in self._specials)
        self._forms = TemplateForms(tokenizer, template, arguments or {})

    @property
    def date(self) -> str | None:
        """The date that the template gets as today, YYYY-MM-DD; None if it doesn't use one."""
        return self._forms.date

    def encode(
        self,
        messages: Sequence[Message],
        supervised_from: int,
        where: str,
        *,
        tools: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ChatTokens:
        """Encode a conversation, and mark the tokens that are targets.

        Args:
            messages: ``{"role": ..., "content": ...}`` each; see :mod:`logitcache.data.chat.messages`.
            supervised_from: index of the first message that may be a target.
            where: names the row in errors.
            tools: the row's tools.
            extra: the row's own variables for the template.

        Returns:
            The tokens; without targets if no turn of the assistant is one.

        Raises:
            RowError: this conversation can't be rendered, or the position of its turns isn't certain.
            DataError: there is no template, or the tokenizer doesn't give the position of its tokens.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            raise DataError(f"{where}: chats need a fast tokenizer, which gives the position of each token in the text")
        given = self._forms.conversation(messages, where, tools, extra)
        finder = given.render(
            lambda tried: TurnFinder(given.template, tried, given.variables, specials=self._specials, where=where)
        )
        missing = find_left_out(finder.text, given.messages, finder.message_spans)
        turns = [i for i in self._target_turns(given, supervised_from) if i not in missing.empty_turns]
        spans = finder.target_spans(turns)
        ids, is_target_L = self._tokenise(finder.text, spans)
        notes = [*given.notes, *finder.notes, *missing.notes]
        if self._begins_twice(ids, given.messages):
            ids, is_target_L = ids[1:], is_target_L[1:]
            notes.append(_TWICE)
        return ChatTokens(ids, is_target_L, tuple(notes))

    def encode_prompt(
        self, messages: Sequence[Message], where: str, *, tools: Any = None, extra: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation up to the point where the assistant begins its next turn.

        Args:
            messages: as for :meth:`encode`.
            where: names the row in errors.
            tools: the row's tools.
            extra: the row's own variables for the template.

        Raises:
            RowError: this conversation can't be rendered.
            DataError: there is no template.
        """
        given = self._forms.conversation(messages, where, tools, extra)
        text = given.render(lambda tried: given.template.render(tried, given.variables, prompt=True))
        ids = list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids[1:] if self._begins_twice(ids, given.messages) else ids

    def _target_turns(self, given: TemplateInput, supervised_from: int) -> list[int]:
        turns = [i for i, message in enumerate(given.messages) if message["role"] == "assistant"]
        turns = turns if self._turns == "all" else turns[-1:]
        return [i for i in turns if i >= supervised_from and given.supervised[i]]

    def _tokenise(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], NDArray[np.bool_]]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets_L2 = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        edges = np.zeros(len(text) + 2, dtype=np.int64)
        for start, stop in spans:
            edges[start] += 1
            edges[stop] -= 1
        # For each character, the number of characters before it that belong to a target.
        before = np.concatenate([[0], np.cumsum(np.cumsum(edges) > 0)])
        starts_L, stops_L = offsets_L2[:, 0], offsets_L2[:, 1]
        # A token without characters is treated like the character after it.
        is_target_L = before[np.maximum(stops_L, starts_L + 1)] > before[starts_L]
        return list(encoded["input_ids"]), is_target_L

    def _begins_twice(self, ids: Sequence[int], messages: Sequence[Message]) -> bool:
        """True if the template writes BOS and a message also begins with it. (A template may write it twice itself.)"""
        bos = self._tokenizer.bos_token_id
        if bos is None or len(ids) < 2 or not ids[0] == ids[1] == bos:
            return False
        return any(said.lstrip().startswith(self._tokenizer.bos_token) for said in map(_said, messages))


def _said(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
