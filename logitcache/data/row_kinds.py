"""What a row holds, found by its columns: a document, token ids, a chat, or a prompt with its completion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from logitcache.data.chat import Message, from_sharegpt
from logitcache.data.files.sources import Row
from logitcache.errors import DataError, RowError

#: Columns of a chat. `text` often stands beside them, as the same chat already rendered.
CHAT_COLUMNS = ("messages", "conversations", "conversation")
TOKEN_COLUMNS = ("input_ids", "token_ids")
#: Question, further input, and answer, as public data sets name them.
_PAIRS = (
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
)
#: Columns that say which tokens are to be predicted, as trainers name them.
_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
_NOT_PREDICTED = -100


@dataclass(frozen=True, eq=False)
class Document:
    """Plain text, all of it to be predicted."""

    text: str


@dataclass(frozen=True, eq=False)
class TokenRow:
    """Token ids; ``predicted`` says which of them are to be predicted, None where the row doesn't say."""

    token_ids: list[int]
    predicted: list[bool] | None


@dataclass(frozen=True, eq=False)
class ChatRow:
    """Messages; assistant turns count from message ``supervised_from`` on."""

    messages: list[Message]
    supervised_from: int = 0
    tools: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PairRow:
    """Text to read, and the text that follows it, which is to be predicted."""

    prompt: str
    completion: str


RowKind = Document | TokenRow | ChatRow | PairRow


@dataclass(frozen=True)
class RowReader:
    """Finds what the rows of one corpus hold.

    Attributes:
        text_column: the column to read; None goes by the columns' names.
        has_template: the teacher's tokenizer has a chat template, so a question with its answer is a chat.
        prompts: rows may hold a prompt alone, for a teacher that answers it.
        note: called with what a person should know about a row, and the row's name.
    """

    text_column: str | None
    has_template: bool
    note: Callable[[str, str], None]
    prompts: bool = False

    def kind(self, row: Row, where: str) -> RowKind | None:
        """What the row holds; None if it holds nothing.

        Raises:
            DataError: no column is known, or the wanted one isn't there.
            RowError: a column holds the wrong kind of value.
        """
        if self.text_column is not None:
            if self.text_column not in row:
                raise DataError(f"{where}: there is no column {self.text_column!r}; {columns_of(row)}")
            return self._value(row, self.text_column, where)
        known = self._known(row)
        if not known:
            wanted = "text, messages, prompt and completion, or input_ids"
            raise DataError(f"{where}: found no column {wanted}; {columns_of(row)}. Choose with --text-column")
        filled = [name for name in known if _is_filled(row[name])]
        if not filled:
            return None
        if filled[0] != known[0]:
            self.note(f"column {known[0]} is empty, {filled[0]} is read instead", where)
        pair = next((pair for pair in _PAIRS if pair[0] == filled[0] and pair[2] in row), None)
        if pair is not None:
            return self._pair(row, pair, where)
        if filled[0] in (*CHAT_COLUMNS, *TOKEN_COLUMNS) and isinstance(row[filled[0]], str):
            # Taken as a document it would teach its own notation.
            raise RowError(
                f"{where}: column {filled[0]!r} holds text, not a list (JSON that wasn't decoded?); decode it, or "
                f"choose --text-column {filled[0]} to take it as plain text"
            )
        return self._value(row, filled[0], where)

    def _known(self, row: Row) -> list[str]:
        """The row's columns that can be read, the first choice first; of a pair, the question's."""
        asked = [first for first, _, answer in _PAIRS if first in row and (answer in row or self._alone(first))]
        names = [*CHAT_COLUMNS, *dict.fromkeys(asked), *TOKEN_COLUMNS, "text"]
        return [name for name in names if name in row]

    def _alone(self, first: str) -> bool:
        return self.prompts and first == "prompt"

    def _value(self, row: Row, name: str, where: str) -> RowKind | None:
        value = row[name]
        if not _is_filled(value):
            return None
        if isinstance(value, str):
            return Document(value)
        if isinstance(value, bytes):
            raise RowError(f"{where}: column {name!r} holds bytes that are not UTF-8")
        if isinstance(value, Iterable) and not isinstance(value, Mapping):
            items = list(value)
            if all(isinstance(item, Mapping) for item in items):
                return ChatRow(_messages(items, where), 0, row.get("tools") or None, _extra(row, where))
            if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
                return _token_row(items, row, where)
        raise RowError(
            f"{where}: column {name!r} holds {type(value).__name__}; it must be text, a list of token ids, or messages"
        )

    def _pair(self, row: Row, columns: tuple[str, str | None, str], where: str) -> RowKind | None:
        first, further, answer = columns
        question, reply = row[first], row[answer]
        if isinstance(question, list) and isinstance(reply, list):
            messages = [*_messages(question, where), *_messages(reply, where)]
            return ChatRow(messages, len(question), row.get("tools") or None, _extra(row, where))
        if not isinstance(question, str) or not isinstance(reply, str | None):
            raise RowError(f"{where}: {first} and {answer} must both be text or both be lists of messages")
        if first == "prompt":
            return PairRow(question, reply or "")
        rest = row.get(further) if further else None
        if rest is not None and not isinstance(rest, str):
            raise RowError(f"{where}: {further} holds {type(rest).__name__}; it must be text")
        return self._instruction(question, rest or "", reply or "", where)

    def _instruction(self, instruction: str, rest: str, answer: str, where: str) -> RowKind:
        if self.has_template:
            self.note("an instruction with its answer, read as a chat", where)
            asked = f"{instruction}\n\n{rest}" if rest else instruction
            return ChatRow([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
        self.note("an instruction with its answer, read in the form that Alpaca was published with", where)
        return PairRow(_alpaca(instruction, rest), answer)


def columns_of(row: Row) -> str:
    """What to tell the user about a row in which something is missing."""
    return f"the columns are {', '.join(map(str, row))}" if row else "the row is empty"


def _is_filled(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return bool(value.strip())
    return value is not None and value != []


def _messages(items: list[Any], where: str) -> list[Message]:
    """Messages by role and content; share-GPT's spelling is turned into it."""
    if not all(isinstance(item, Mapping) for item in items):
        raise RowError(f"{where}: a message must be an object with a role and a content")
    if any("from" in item and "role" not in item for item in items):
        return from_sharegpt(items, where)
    return [dict(item) for item in items]


def _extra(row: Row, where: str) -> Mapping[str, Any]:
    given = row.get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping):
        raise RowError(f"{where}: chat_template_kwargs holds {type(given).__name__}; it must be an object")
    extra = dict(given)
    if row.get("documents"):
        extra["documents"] = row["documents"]
    return {name: value for name, value in extra.items() if value is not None}


def _token_row(ids: list[int], row: Row, where: str) -> TokenRow:
    """Token ids without their padding, and which of them are to be predicted."""
    span = _unpadded(row.get("attention_mask"), ids, where)
    kept = ids[span]
    positions = _beside(row, "position_ids", ids, span, where)
    if positions is not None and any(b != a + 1 for a, b in itertools.pairwise(positions)):
        raise RowError(f"{where}: position_ids begin again inside the row: give each document a row of its own")
    predicted: list[bool] | None = None
    labels = _beside(row, "labels", ids, span, where)
    if labels is not None:
        predicted = [label != _NOT_PREDICTED for label in labels]
        for place, (label, token) in enumerate(zip(labels, kept, strict=True)):
            if label not in (_NOT_PREDICTED, token):
                raise RowError(
                    f"{where}: labels[{span.start + place}] is {label} where the token is {token}: labels must repeat "
                    "the tokens (not shifted), or be -100"
                )
    for name in _MASKS:
        if (mask := _beside(row, name, ids, span, where)) is not None:
            before = [True] * len(kept) if predicted is None else predicted
            predicted = [bool(marked) and was for marked, was in zip(mask, before, strict=True)]
    return TokenRow(kept, predicted)


def _unpadded(attention: Any, ids: list[int], where: str) -> slice:
    """The tokens that an attention mask leaves visible.

    Raises:
        RowError: it has another length, or hides tokens between others.
    """
    if attention is None:
        return slice(0, len(ids))
    _same_length("attention_mask", attention, ids, where)
    _whole_numbers("attention_mask", attention, where)
    seen = [place for place, mark in enumerate(attention) if mark]
    span = slice(seen[0], seen[-1] + 1) if seen else slice(0, 0)
    if len(seen) != span.stop - span.start:
        raise RowError(f"{where}: attention_mask hides tokens in the middle of the row; only padding can be left out")
    return span


def _beside(row: Row, name: str, ids: list[int], span: slice, where: str) -> list[Any] | None:
    """The values of a column that has one for each token, without those of the padding; None if there is no column."""
    values = row.get(name)
    if values is None:
        return None
    _same_length(name, values, ids, where)
    _whole_numbers(name, values, where)
    return list(values)[span]


def _whole_numbers(name: str, values: Any, where: str) -> None:
    if not all(isinstance(value, int) for value in values):
        raise RowError(f"{where}: {name} holds something else than whole numbers")


def _same_length(name: str, values: Any, ids: list[int], where: str) -> None:
    if not isinstance(values, list | tuple) or len(values) != len(ids):
        size = len(values) if isinstance(values, list | tuple) else type(values).__name__
        raise RowError(f"{where}: {size} {name} for {len(ids)} token ids")


def _alpaca(instruction: str, rest: str) -> str:
    """The prompt of the Stanford Alpaca data set, for models that have no chat template."""
    if rest:
        head = "Below is an instruction that describes a task, paired with an input that provides further context. "
        body = f"### Instruction:\n{instruction}\n\n### Input:\n{rest}\n\n### Response:\n"
    else:
        head = "Below is an instruction that describes a task. "
        body = f"### Instruction:\n{instruction}\n\n### Response:\n"
    return f"{head}Write a response that appropriately completes the request.\n\n{body}"
