"""Which characters of a conversation's text the model itself would have to produce.

One rule: a turn's targets reach from the end of what the template writes with the generation prompt (for the messages
before the turn) to the token that ends the turn, that one included. What the generation prompt says is context.

Where the generation prompt says more than the text does (a ``<think>`` that the template drops from the history), the
part they share is context, cut back to the end of its last special token or white space. White space behind the last
end token is no target. A turn without an end token of its own is ended by a special token that follows it at once, as
models that stop at the next speaker's token do; without one it reaches to its last character, white space too, since
that is all that tells the model's turn from what follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from logitcache.data.chat.kinds import kinds_of
from logitcache.data.chat.messages import Message
from logitcache.data.chat.openings import opening
from logitcache.data.chat.template import Template
from logitcache.errors import RowError

#: Said of a turn that nothing ends.
NO_END = "the chat template writes no token that ends an assistant's turn"


class TurnFinder:
    """The assistant's turns of one conversation.

    Args:
        template: the compiled template.
        messages: as the template is to be given them.
        variables: what else the template is given.
        specials: the texts of the tokenizer's special tokens.
        where: names the row in errors.
        exact: renders the messages before every turn, which costs the square of their number. Otherwise turns of one
            kind (:mod:`~logitcache.data.chat.kinds`) share a generation prompt as long as the text agrees with it.

    Attributes:
        text: the conversation.
        stretches: where each message stands in it; all None if the template doesn't let that be told.
        notes: what a person must know about the turns.
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
        self._whole = template.rendering(messages, variables)
        self.text = self._whole.text if self._whole else template.render(messages, variables)
        self.stretches = self._whole.stretches if self._whole else [None] * len(messages)
        self._closing = _closing(self.text, self._specials)
        self.notes: list[str] = []

    def spans(self, turns: Sequence[int]) -> list[tuple[int, int]]:
        """Character ranges of the targets.

        Args:
            turns: indices of the assistant's messages that are to be learnt. One that the template leaves out has
                no range.

        Raises:
            RowError: where a turn begins or ends isn't certain.
        """
        if not any(self.stretches):
            return [self._by_prefixes(turn) for turn in turns]
        turns = [turn for turn in turns if self.stretches[turn]]
        starts = self._starts(turns)
        stops = self._stops(turns)
        return [(start, self._end(start, max(start, stop))) for start, stop in zip(starts, stops, strict=True)]

    def _starts(self, turns: Sequence[int]) -> list[int]:
        assert self._whole is not None
        kinds = range(len(self._messages)) if self._exact else kinds_of(self._messages, self._template.looked_for)
        known: dict[Any, tuple[str, int]] = {}
        starts = []
        for turn in turns:
            begin, end = self.stretches[turn] or (0, 0)
            said = self.text[begin:end]
            prompt, shared = known.get(kinds[turn], ("", None))
            if shared is None or self._shared(prompt, said) != shared:
                found = opening(self._template, self._messages, self._variables, self._whole, turn)
                shared = None if found is None else self._shared(found, said)
                if found is None or shared is None:
                    raise self._uncertain(turn, "begins")
                known[kinds[turn]] = found, shared
            starts.append(begin + shared)
        return starts

    def _shared(self, prompt: str, said: str) -> int | None:
        """How much of a turn's text the generation prompt says; None if they have nothing to do with each other."""
        common = common_length(prompt, said)
        if not prompt[common:].strip():
            return common
        ends = [match.end() for match in self._special.finditer(prompt[:common])]
        ends += [match.end() for match in re.finditer(r"\s", prompt[:common])]
        return max(ends, default=None)

    def _stops(self, turns: Sequence[int]) -> list[int]:
        """Where each turn's own text ends, before anything of a later message that the template writes into it."""
        alone = self._alone(turns)
        stops = []
        for turn in turns:
            begin, end = self.stretches[turn] or (0, 0)
            if turn in alone:
                end = begin + common_length(self.text[begin:end], alone[turn])
                # A special token that the two share in part only is not shared.
                cut = next((found for found in self._special.finditer(self.text, begin) if found.end() > end), None)
                end = min(end, cut.start()) if cut else end
            stops.append(end)
        return stops

    def _alone(self, turns: Sequence[int]) -> dict[int, str]:
        """The text of turns that later messages may have got into, rendered without these messages.

        Such a message has no place of its own: some templates write a tool's answer into the turn that called it.
        """
        strays, owners = set(), set()
        turn = -1
        for i, message in enumerate(self._messages):
            if message["role"] == "assistant":
                turn = i
            elif self.stretches[i] is None and message.get("content") and turn in turns:
                strays.add(i)
                owners.add(turn)
        if self._exact:
            return {turn: self._text_of(range(turn + 1), [turn])[turn] for turn in sorted(owners)}
        kept = [i for i in range(len(self._messages)) if i not in strays]
        return self._text_of(kept, sorted(owners)) if owners else {}

    def _text_of(self, kept: Sequence[int], turns: Sequence[int]) -> dict[int, str]:
        """The text of some turns in a rendering of the messages ``kept``."""
        try:
            rendering = self._template.rendering([self._messages[i] for i in kept], self._variables)
        except Exception as error:
            raise self._uncertain(turns[0], "ends") from error
        places = dict(zip(kept, rendering.stretches, strict=True)) if rendering else {}
        texts = {}
        for turn in turns:
            place = places.get(turn)
            if rendering is None or place is None:
                raise self._uncertain(turn, "ends")
            texts[turn] = rendering.text[slice(*place)]
        return texts

    def _end(self, start: int, stop: int) -> int:
        """The end of the token that ends a turn whose own text reaches from ``start`` to ``stop``."""
        if stop >= self._closing:
            # Nothing but end tokens follow, which some templates write behind their loop.
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
        """A turn's range for templates without a loop over the messages: the text must grow with the messages."""
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
            f"{self._where}: where the assistant's turn in message {turn + 1} {what} can't be told from the chat "
            "template; give another one (--chat-template), or leave such rows out"
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


def _closing(text: str, specials: tuple[str, ...]) -> int:
    """Where the special tokens begin that end the text; its length if none do."""
    end = len(text)
    while specials and (last := next((each for each in specials if text.rstrip().endswith(each)), None)):
        text = text.rstrip().removesuffix(last)
        end = len(text)
    return end
