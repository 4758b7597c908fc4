"""Find the characters of a conversation's text that are targets.

The rule: the targets of a turn begin after the generation prompt that the template writes for the messages before the
turn, and end with the token that ends the turn. The generation prompt itself is context.

The generation prompt may be longer than the text (a ``<think>`` that the template leaves out of earlier turns). Then
the common part is context, up to the end of its last special token or white space. White space after the last end token
is not a target. If a turn has no end token of its own, a special token that follows at once ends it, because some
models stop at the token of the next speaker. Without such a token the turn ends with its last character, white space
included, because nothing else separates it from the text after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from logitcache.data.chat.generation_prompt import find_generation_prompt
from logitcache.data.chat.kinds import turn_kinds
from logitcache.data.chat.messages import Message
from logitcache.data.chat.template import Template
from logitcache.errors import RowError

#: The note about a turn without an end token.
NO_END = "the chat template writes no token that ends an assistant's turn"


class TurnFinder:
    """Find the assistant's turns in the text of one conversation.

    Args:
        template: the compiled template.
        messages: the messages for the template.
        variables: the template's other variables.
        specials: the texts of the tokenizer's special tokens.
        where: names the row in errors.
        exact: render the messages before every turn, which costs the square of their number. If False, turns of one
            kind (:mod:`~logitcache.data.chat.kinds`) share a generation prompt, if the text agrees with it.

    Attributes:
        text: the rendered conversation.
        message_spans: begin and end of each message in it; all None if they can't be found.
        notes: what the user should know about the turns.
    """

    def __init__(
        self,
        template: Template,
        messages: list[Message],
        variables: Mapping[str, Any],
        *,
        specials: Sequence[str],
        where: str,
        exact: bool = False,
    ) -> None:
        self._template = template
        self._messages = messages
        self._variables = variables
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")
        self._specials = tuple(specials)
        self._where = where
        self._exact = exact
        self._whole = template.render_with_spans(messages, variables)
        self.text = self._whole.text if self._whole else template.render(messages, variables)
        self.message_spans = self._whole.message_spans if self._whole else [None] * len(messages)
        self._end_tokens_start = _end_tokens_start(self.text, self._specials)
        self.notes: list[str] = []

    def target_spans(self, turns: Sequence[int]) -> list[tuple[int, int]]:
        """Character ranges of the targets.

        Args:
            turns: indices of the assistant's messages that are targets. A message that the template leaves out has no
                range.

        Raises:
            RowError: the begin or end of a turn isn't certain.
        """
        if not any(self.message_spans):
            return [self._by_prefixes(turn) for turn in turns]
        turns = [turn for turn in turns if self.message_spans[turn]]
        starts = self._starts(turns)
        stops = self._stops(turns)
        return [(start, self._end(start, max(start, stop))) for start, stop in zip(starts, stops, strict=True)]

    def _starts(self, turns: Sequence[int]) -> list[int]:
        assert self._whole is not None
        kinds = range(len(self._messages)) if self._exact else turn_kinds(self._messages, self._template.searched_texts)
        known: dict[Any, tuple[str, int]] = {}
        starts = []
        for turn in turns:
            begin, end = self.message_spans[turn] or (0, 0)
            said = self.text[begin:end]
            prompt, shared = known.get(kinds[turn], ("", None))
            if shared is None or self._shared(prompt, said) != shared:
                found = find_generation_prompt(self._template, self._messages, self._variables, self._whole, turn)
                shared = None if found is None else self._shared(found, said)
                if found is None or shared is None:
                    raise self._uncertain(turn, "begins")
                known[kinds[turn]] = found, shared
            starts.append(begin + shared)
        return starts

    def _shared(self, prompt: str, said: str) -> int | None:
        """Length of the common beginning of the generation prompt and a turn's text; None if they don't match."""
        common = common_length(prompt, said)
        if not prompt[common:].strip():
            return common
        ends = [match.end() for match in self._special.finditer(prompt[:common])]
        ends += [match.end() for match in re.finditer(r"\s", prompt[:common])]
        return max(ends, default=None)

    def _stops(self, turns: Sequence[int]) -> list[int]:
        """The end of each turn's own text, without later messages that the template writes into the turn."""
        alone = self._render_alone(turns)
        stops = []
        for turn in turns:
            begin, end = self.message_spans[turn] or (0, 0)
            if turn in alone:
                end = begin + common_length(self.text[begin:end], alone[turn])
                # A special token of which only a part is common isn't common.
                cut = next((found for found in self._special.finditer(self.text, begin) if found.end() > end), None)
                end = min(end, cut.start()) if cut else end
            stops.append(end)
        return stops

    def _render_alone(self, turns: Sequence[int]) -> dict[int, str]:
        """The text of turns that may contain later messages, rendered without those messages.

        Some templates write a tool's answer into the turn that called it. Such a message has no span of its own.
        """
        inserted, owners = set(), set()
        turn = -1
        for i, message in enumerate(self._messages):
            if message["role"] == "assistant":
                turn = i
            elif self.message_spans[i] is None and message.get("content") and turn in turns:
                inserted.add(i)
                owners.add(turn)
        if self._exact:
            return {turn: self._text_of(range(turn + 1), [turn])[turn] for turn in sorted(owners)}
        kept = [i for i in range(len(self._messages)) if i not in inserted]
        return self._text_of(kept, sorted(owners)) if owners else {}

    def _text_of(self, kept: Sequence[int], turns: Sequence[int]) -> dict[int, str]:
        """The text of some turns when only the messages ``kept`` are rendered."""
        try:
            rendering = self._template.render_with_spans([self._messages[i] for i in kept], self._variables)
        except Exception as error:
            raise self._uncertain(turns[0], "ends") from error
        places = dict(zip(kept, rendering.message_spans, strict=True)) if rendering else {}
        texts = {}
        for turn in turns:
            place = places.get(turn)
            if rendering is None or place is None:
                raise self._uncertain(turn, "ends")
            texts[turn] = rendering.text[slice(*place)]
        return texts

    def _end(self, start: int, stop: int) -> int:
        """The end of the token that ends a turn; the turn's own text is from ``start`` to ``stop``."""
        if stop >= self._end_tokens_start:
            # Only end tokens follow, which some templates write after their loop.
            stop = len(self.text)
        said = self.text[start:stop].rstrip()
        if said.endswith(self._specials):
            return start + len(said)
        after = self._special.match(self.text, stop)
        if after is not None:
            return after.end()
        if NO_END not in self.notes:
            self.notes.append(NO_END)
        return stop

    def _by_prefixes(self, turn: int) -> tuple[int, int]:
        """A turn's range for templates without a loop over the messages. Each message may only add text at the end."""
        try:
            prompt = self._template.render(self._messages[:turn], self._variables, prompt=True)
            until = self._template.render(self._messages[: turn + 1], self._variables)
        except Exception as error:
            raise self._uncertain(turn, "begins") from error
        if not self.text.startswith(prompt) or len(until) < len(prompt):
            raise self._uncertain(turn, "begins")
        if not self.text.startswith(until):
            raise self._uncertain(turn, "ends")
        return len(prompt), self._end(len(prompt), len(until))

    def _uncertain(self, turn: int, what: str) -> RowError:
        return RowError(
            f"{self._where}: the chat template doesn't show where the assistant's turn in message {turn + 1} {what}; "
            "give another template (--chat-template), or leave such rows out"
        )


def common_length(one: str, other: str) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _end_tokens_start(text: str, specials: tuple[str, ...]) -> int:
    """The position of the special tokens at the end of the text; the text's length if there are none."""
    end = len(text)
    while specials and (last := next((each for each in specials if text.rstrip().endswith(each)), None)):
        text = text.rstrip().removesuffix(last)
        end = len(text)
    return end
