"""Find out from its columns what a row holds: a document, token ids, a chat, or a prompt with its completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from logitcache.data.chat import Message, from_sharegpt
from logitcache.data.files.sources import Row
from logitcache.data.shorten import list_values
from logitcache.data.tally import Tally
from logitcache.data.token_rows import EXTRA_COLUMNS, TokenRow, token_row
from logitcache.errors import DataError, RowError

#: Columns of a chat. Such rows often also have `text`, which is the same chat already rendered.
CHAT_COLUMNS = ("messages", "conversations", "conversation")
TOKEN_COLUMNS = ("input_ids", "token_ids")
#: Columns of question, further input and answer, as public data sets name them.
_PAIRS = (
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
)
#: Columns that hold the system message of a chat whose messages have none.
_SYSTEM = ("system", "system_prompt")
#: Columns that the chat template can read.
_OF_CHATS = ("tools", "chat_template_kwargs", "documents", *_SYSTEM)


@dataclass(frozen=True, eq=False)
class Document:
    """Plain text; all of it is a target."""

    text: str


@dataclass(frozen=True, eq=False)
class ChatRow:
    """Messages; the assistant's turns from message ``supervised_from`` on are targets."""

    messages: list[Message]
    supervised_from: int = 0
    tools: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PairRow:
    """A prompt, which is context, and its completion, which is the target."""

    prompt: str
    completion: str


RowKind = Document | TokenRow | ChatRow | PairRow


@dataclass(frozen=True)
class RowReader:
    """Finds what the rows of one corpus hold.

    Attributes:
        text_column: the column to read; with None it is found by the columns' names.
        has_template: True if the tokenizer has a chat template; then a question with its answer is read as a chat.
        prompts: True if a row may hold only a prompt, for a teacher that generates the answer.
        tally: counts how rows were read.
    """

    text_column: str | None
    has_template: bool
    tally: Tally
    prompts: bool = False
    _unread: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def kind(self, row: Row, where: str) -> RowKind | None:
        """What the row holds; None if it holds nothing.

        Raises:
            DataError: the row has no known column, or ``text_column`` isn't there.
            RowError: a column holds the wrong kind of value.
        """
        name = self._column(row, where)
        if name is None:
            return None
        pair = None
        if self.text_column is None:
            pair = next((pair for pair in _PAIRS if pair[0] == name and pair[2] in row), None)
        kind = self._value(row, name, where) if pair is None else self._pair(row, pair, where)
        if kind is not None:
            self._note_unread(row, pair or (name,), kind, where)
        return kind

    def _column(self, row: Row, where: str) -> str | None:
        """The column that says what the row is; None if all such columns are empty."""
        if self.text_column is not None:
            if self.text_column not in row:
                raise DataError(f"{where}: there is no column {self.text_column!r}; {columns_of(row)}")
            return self.text_column
        known = self._known(row)
        if not known:
            raise DataError(f"{where}: {_unknown(row)}")
        filled = [name for name in known if _is_filled(row[name])]
        if not filled:
            return None
        if filled[0] != known[0]:
            self.tally.note(f"column {known[0]} is empty, {filled[0]} is read instead", where)
        if filled[0] in (*CHAT_COLUMNS, *TOKEN_COLUMNS) and isinstance(row[filled[0]], str):
            # As a document it would teach the model to write JSON.
            raise RowError(
                f"{where}: column {filled[0]!r} holds text, not a list (JSON that wasn't decoded?); decode it, or "
                f"choose --text-column {filled[0]} to take it as plain text"
            )
        return filled[0]

    def _known(self, row: Row) -> list[str]:
        """The row's columns that can be read, first choice first. For a pair it is the column of the question."""
        asked = [first for first, _, answer in _PAIRS if first in row and (answer in row or self._may_be_alone(first))]
        names = [*CHAT_COLUMNS, *dict.fromkeys(asked), *TOKEN_COLUMNS, "text"]
        return [name for name in names if name in row]

    def _may_be_alone(self, first: str) -> bool:
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
                return self._chat(_messages(items, where), 0, row, where)
            if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
                return token_row(items, row, where)
            held = f"a list of {list_values(sorted({type(item).__name__ for item in items}))}"
        else:
            held = type(value).__name__
        raise RowError(f"{where}: column {name!r} holds {held}; it must be text, a list of token ids, or messages")

    def _pair(self, row: Row, columns: tuple[str, str | None, str], where: str) -> RowKind | None:
        first, further, answer = columns
        question, reply = row[first], row[answer]
        if isinstance(question, list) and reply is None:
            reply = []
        if isinstance(question, list) and isinstance(reply, list):
            messages = [*_messages(question, where), *_messages(reply, where)]
            return self._chat(messages, len(question), row, where)
        if not isinstance(question, str) or not isinstance(reply, str | None):
            raise RowError(f"{where}: {first} and {answer} must both be text or both be lists of messages")
        if first == "prompt":
            return PairRow(question, reply or "")
        rest = row.get(further) if further else None
        if rest is not None and not isinstance(rest, str):
            raise RowError(f"{where}: {further} holds {type(rest).__name__}; it must be text")
        if not self.has_template:
            self.tally.note_choice(
                "an instruction with its answer, read in the form that Alpaca was published with", where
            )
            return PairRow(_alpaca(question, rest or ""), reply or "")
        self.tally.note_choice("an instruction with its answer, read as a chat", where)
        asked = f"{question}\n\n{rest}" if rest else question
        return self._chat(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": reply or ""}], 1, row, where
        )

    def _chat(self, messages: list[Message], supervised_from: int, row: Row, where: str) -> ChatRow:
        """A chat with its tools and template variables. A system message in its own column becomes the first one."""
        name = next((name for name in _SYSTEM if _is_filled(row.get(name))), None)
        if name is not None:
            said = row[name]
            if not isinstance(said, str):
                raise RowError(f"{where}: column {name} holds {type(said).__name__}; it must be text")
            if not any(message.get("role") in ("system", "developer") for message in messages):
                messages, supervised_from = [{"role": "system", "content": said}, *messages], supervised_from + 1
            elif not any(message.get("content") == said for message in messages):
                self.tally.note(f"column {name} isn't read: the messages have a system message of their own", where)
        return ChatRow(messages, supervised_from, row.get("tools") or None, _extra(row, where))

    def _note_unread(self, row: Row, columns: tuple[str | None, ...], kind: RowKind, where: str) -> None:
        found = (columns, type(kind), *row)
        if found not in self._unread:
            known = EXTRA_COLUMNS if isinstance(kind, TokenRow) else _OF_CHATS if isinstance(kind, ChatRow) else ()
            unread = [name for name in row if name not in columns and name not in known]
            self._unread[found] = f"columns that aren't read: {list_values(unread)}" if unread else ""
        if self._unread[found]:
            self.tally.note_choice(self._unread[found], where)


def columns_of(row: Row) -> str:
    """The row's columns as text, for an error about a missing column."""
    return f"the columns are {list_values(row)}" if row else "the row is empty"


def _unknown(row: Row) -> str:
    if "chosen" in row and "rejected" in row:
        return (
            "the row is a preference (chosen, rejected), of which the teacher could learn one answer only; give that "
            "one as prompt and completion, or as messages"
        )
    wanted = "text, messages, prompt and completion, or input_ids"
    return f"found no column {wanted}; {columns_of(row)}. Choose with --text-column"


def _is_filled(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return bool(value.strip())
    return value is not None and value != []


def _messages(items: list[Any], where: str) -> list[Message]:
    """Messages with role and content; share-GPT's form is converted."""
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


def _alpaca(instruction: str, rest: str) -> str:
    """The prompt of the Stanford Alpaca data set, for models without a chat template."""
    if rest:
        head = "Below is an instruction that describes a task, paired with an input that provides further context. "
        body = f"### Instruction:\n{instruction}\n\n### Input:\n{rest}\n\n### Response:\n"
    else:
        head = "Below is an instruction that describes a task. "
        body = f"### Instruction:\n{instruction}\n\n### Response:\n"
    return f"{head}Write a response that appropriately completes the request.\n\n{body}"
