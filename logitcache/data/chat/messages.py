"""Bring a row's messages and tools to the form that chat templates read.

Rows write the same thing in many ways: contents as text or as a list of parts, the arguments of a tool call as JSON or
as a dictionary, tools with or without the wrapper, a weight for each message. All are brought to one form. If that
isn't possible, the error has the message's number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitcache.data.shorten import list_values, shorten
from logitcache.errors import RowError
from logitcache.utils.reasons import reason

Message = dict[str, Any]

_REASONING = ("reasoning_content", "thinking", "reasoning")
_SUPERVISION = ("weight", "train", "loss")

_ONLY_ASSISTANT = "a message that isn't the assistant's is marked for training; only the assistant's are targets"
_JOINED = "text parts of a message were joined by line breaks, because the chat template takes text"


@dataclass(frozen=True, eq=False)
class Conversation:
    """Messages in one form.

    Attributes:
        messages: each with a ``role``; ``content``, where present, is text or a list of text parts.
        supervised: for each message, False where the row says that it isn't to be trained on.
        notes: what the user should know about the row.
    """

    messages: list[Message]
    supervised: list[bool]
    notes: tuple[str, ...]


def normalise(
    messages: Iterable[Any], where: str, *, takes_text: bool = True, takes_parts: bool = False
) -> Conversation:
    """Bring messages to the one form that a chat template gets.

    Args:
        messages: mappings with ``role`` and ``content``.
        where: names the row in errors.
        takes_text: the template accepts contents that are text.
        takes_parts: the template accepts contents that are lists of parts.

    Raises:
        RowError: a message has no role, a content that isn't text, a weight other than 0 or 1, or broken Unicode.
    """
    done: list[Message] = []
    supervised: list[bool] = []
    notes: dict[str, None] = {}
    for number, given in enumerate(messages, 1):
        at = f"{where}: message {number}"
        message = _plain_message(given, at)
        mark = _supervision(message, at)
        if mark and message["role"] != "assistant":
            notes[_ONLY_ASSISTANT] = None
        supervised.append(mark is not False)
        _normalise_content(message, at, notes, takes_text=takes_text, takes_parts=takes_parts)
        _normalise_calls(message, at)
        reasoning = next((message[name] for name in _REASONING if name in message), None)
        if reasoning is not None:
            # As in transformers: templates read the reasoning under different names.
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        done.append(message)
    return Conversation(done, supervised, tuple(notes))


def message_forms(messages: list[Message]) -> Iterator[list[Message]]:
    """First the messages as they are, then other forms that some templates require.

    A message without content may need ``content: null`` or an empty content, and the arguments of a tool call may have
    to be JSON text.
    """
    bare = any("content" not in message for message in messages)
    called = any("tool_calls" in message for message in messages)
    nothing: Any = [] if any(isinstance(message.get("content"), list) for message in messages) else ""
    for as_json in (False, True) if called else (False,):
        for empty in ({}, {"content": None}, {"content": nothing}) if bare else ({},):
            yield [{**empty, **(_with_json_arguments(message) if as_json else message)} for message in messages]


def normalise_tools(tools: Any, where: str) -> list[Any] | None:
    """A row's tools, each wrapped as ``{"type": "function", "function": …}``; None if there are none.

    Args:
        tools: a list, or JSON text of one. Each tool is a function's schema, wrapped or not, or JSON text of one.
        where: names the row in errors.

    Raises:
        RowError: it isn't such a list.
    """
    tools = _decoded(tools, "the tools", where)
    if tools is None or (isinstance(tools, Iterable) and not isinstance(tools, Mapping) and not list(tools)):
        return None
    if isinstance(tools, Mapping) or not isinstance(tools, Iterable):
        raise RowError(f"{where}: the tools must be a list of functions, not {type(tools).__name__}")
    done = []
    for tool in tools:
        schema = to_plain(_decoded(tool, "a tool", where), where)
        if not isinstance(schema, dict):
            raise RowError(f"{where}: a tool must be a function's schema, not {type(schema).__name__}")
        bare = "function" not in schema and "name" in schema
        done.append({"type": "function", "function": schema} if bare else schema)
    return done


def to_plain(value: Any, where: str) -> Any:
    """A value that JSON can hold, without keys whose value is null (Arrow writes null for an absent key).

    A value that JSON can't hold becomes the name of its type, as in transformers. Templates don't read such values.

    Raises:
        RowError: a text holds half of a surrogate pair, which no tokenizer can encode.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        _check_unicode(value, where)
        return value
    if isinstance(value, Mapping):
        return {to_plain(str(key), where): to_plain(item, where) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_plain(item, where) for item in value]
    return f"<{type(value).__name__}>"


def _check_unicode(text: str, where: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"{where}: the text holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), "
                "which can't be encoded; repair or leave out the row"
            ) from error


def _plain_message(given: Any, at: str) -> Message:
    if not isinstance(given, Mapping):
        raise RowError(f"{at}: must be a mapping with role and content, not {type(given).__name__}")
    message: Message = to_plain(given, at)
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise RowError(f"{at}: has no role; its keys are {list_values(message) or 'none'}")
    return message


def _supervision(message: Message, at: str) -> bool | None:
    """Remove and return the message's mark for training; None if it is absent or null (Arrow's form of absent)."""
    marks = []
    for name in _SUPERVISION:
        value = message.pop(name, None)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                f"{at}: {name} is {shorten(repr(value))}; a message is trained on or not, so it must be 0 or 1"
            )
        marks.append(bool(value))
    return all(marks) if marks else None


def _normalise_content(
    message: Message, at: str, notes: dict[str, None], *, takes_text: bool, takes_parts: bool
) -> None:
    content = message.get("content")
    if content is None:
        return
    if isinstance(content, list):
        texts = [_part_text(part, at) for part in content]
        if takes_parts:
            message["content"] = [{"type": "text", "text": text} for text in texts]
            return
        if len(texts) > 1:
            notes[_JOINED] = None
        message["content"] = "\n".join(texts)
    elif not isinstance(content, str):
        raise RowError(f"{at}: its content must be text or a list of text parts, not {type(content).__name__}")
    elif not takes_text:
        message["content"] = [{"type": "text", "text": content}]


def _part_text(part: Any, at: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type", "text")
        if isinstance(part.get("text"), str) and str(kind).endswith("text"):
            return str(part["text"])
        raise RowError(f"{at}: its content has a part of type {shorten(repr(kind))}; only text parts can be used")
    raise RowError(f"{at}: its content has a part that is {type(part).__name__}; only text parts can be used")


def _normalise_calls(message: Message, at: str) -> None:
    if "function_call" in message:
        # The older form, with a single call.
        message["tool_calls"] = [message.pop("function_call")]
    calls = _decoded(message.pop("tool_calls", None), "the tool calls", at)
    if not calls:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{at}: its tool_calls must be a list of calls")
    done = []
    for call in calls:
        function = call.get("function", {name: call[name] for name in ("name", "arguments") if name in call})
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"{at}: a tool call has no function name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _arguments(arguments)
        rest = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
        done.append({"type": "function", **rest, "function": {**function, "arguments": arguments}})
    message["tool_calls"] = done


def _arguments(text: str) -> Any:
    """The dictionary of a JSON object's text; any other text as it is."""
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _with_json_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}


def _decoded(value: Any, what: str, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise RowError(f"{where}: {what} are text that isn't JSON: {reason(error)}") from error
