"""Choose the chat template for a row, and prepare its messages and variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from logitcache.data.chat.contents import accepted_contents
from logitcache.data.chat.messages import Message, message_forms, normalise, normalise_tools, to_plain
from logitcache.data.chat.template import Template
from logitcache.data.shorten import shorten
from logitcache.errors import DataError, RowError

_Result = TypeVar("_Result")

# Variables that the template always gets.
_RESERVED = frozenset({"messages", "add_generation_prompt"})


@dataclass(eq=False)
class TemplateInput:
    """The input of a template for one row.

    Attributes:
        template: the compiled template.
        messages: the row's messages; after :meth:`render` in the form that the template accepted.
        supervised: for each message, False where the row says that it isn't to be trained on.
        variables: the template's other variables.
        notes: what the user should know about the row.
        where: names the row in errors.
    """

    template: Template
    messages: list[Message]
    supervised: list[bool]
    variables: dict[str, Any]
    notes: list[str]
    where: str

    def render(self, action: Callable[[list[Message]], _Result]) -> _Result:
        """Call ``action`` on the messages in each form, and return the first result that isn't an error.

        Raises:
            RowError: the template accepts no form.
        """
        reason: Exception | None = None
        for messages in message_forms(self.messages):
            try:
                result = action(messages)
            except Exception as error:  # noqa: BLE001
                reason = reason or error
            else:
                self.messages = messages
                return result
        text = " ".join(str(reason).split())[:300] or type(reason).__name__
        raise RowError(f"{self.where}: the chat template can't render these messages: {text}") from reason


class TemplateForms:
    """A tokenizer's chat templates (some tokenizers have a second one for tools) with the user's variables.

    Args:
        tokenizer: a transformers tokenizer.
        source: text of a template that replaces the tokenizer's own.
        arguments: variables for the template, and ``date``.

    Raises:
        DataError: the template isn't valid, or doesn't read one of the variables.
    """

    def __init__(self, tokenizer: Any, source: str | None, arguments: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._source = source if source is not None else getattr(tokenizer, "chat_template", None)
        self._arguments: dict[str, Any] = to_plain(dict(arguments), "the chat template's arguments")
        self._compiled: dict[str, _Compiled] = {}
        if source is not None or arguments:
            self._check_arguments()

    @cached_property
    def date(self) -> str | None:
        """The date that the template gets as today; None if it doesn't use one."""
        days = [compiled.template.date for compiled in self._all()]
        return next((day.day.isoformat() for day in days if day.is_used), None)

    def conversation(
        self, messages: Sequence[Any], where: str, tools: Any, extra: Mapping[str, Any] | None
    ) -> TemplateInput:
        """The input of the template for a row.

        Raises:
            RowError: the messages, the tools or the row's variables can't be read.
            DataError: there is no template.
        """
        own: dict[str, Any] = to_plain(dict(extra or {}), where)
        schemas = normalise_tools(own.pop("tools", None) if tools is None else tools, where)
        if taken := sorted(_RESERVED & own.keys()):
            raise RowError(f"{where}: the row's variables for the chat template must not hold {taken[0]}")
        if not self._source:
            raise DataError(
                f"{where}: the teacher's tokenizer has no chat template, which rows of messages need; give one with "
                "--chat-template"
            )
        compiled = self._for(schemas)
        template = compiled.template
        takes_text, takes_parts = compiled.contents
        conversation = normalise(messages, where, takes_text=takes_text, takes_parts=takes_parts)
        unread = [name for name in ("tools", *own) if name not in template.variables]
        notes = [
            f"the chat template doesn't read the row's {shorten(name)}" for name in unread if name in own or schemas
        ]
        variables = {**self._arguments_of(template), **own, "tools": schemas}
        return TemplateInput(
            template, conversation.messages, conversation.supervised, variables, [*conversation.notes, *notes], where
        )

    def _check_arguments(self) -> None:
        if not self._source:
            raise DataError("the teacher's tokenizer has no chat template that could be given arguments")
        templates = [compiled.template for compiled in self._all()]
        known = set().union(*(template.variables for template in templates)) - _RESERVED
        known |= {"date"} if any(template.date.is_used for template in templates) else set()
        for name in self._arguments:
            if name not in known:
                read = ", ".join(sorted(known)) or "no variables"
                raise DataError(f"the chat template doesn't read {name!r}; it reads {read}")

    def _arguments_of(self, template: Template) -> dict[str, Any]:
        return {name: value for name, value in self._arguments.items() if name != "date" or name in template.variables}

    def _all(self) -> list[_Compiled]:
        if not self._source:
            return []
        sources = self._source.values() if isinstance(self._source, dict) else [self._source]
        return [self._compile(source) for source in sources]

    def _for(self, tools: list[Any] | None) -> _Compiled:
        if isinstance(self._source, dict):
            try:
                return self._compile(self._tokenizer.get_chat_template(None, tools))
            except ValueError as error:
                raise DataError(
                    f"the tokenizer has several chat templates ({', '.join(self._source)}) and none is the default; "
                    "give the one for these rows with --chat-template"
                ) from error
        assert self._source is not None
        return self._compile(self._source)

    def _compile(self, source: str) -> _Compiled:
        if source not in self._compiled:
            date = self._arguments.get("date")
            template = Template(source, self._tokenizer.special_tokens_map, date)
            self._compiled[source] = _Compiled(template, accepted_contents(template))
        return self._compiled[source]


@dataclass(frozen=True)
class _Compiled:
    """A template; ``contents``: whether it accepts contents that are text, and that are lists of parts."""

    template: Template
    contents: tuple[bool, bool]
