"""A chat template: renders conversations, and finds the span of each message in the text.

To find the spans, the template is compiled a second time, with marks at the beginning and the end of the body of every
loop. If the loop's variable is a message, the text that the body writes is that message's span. Without its marks, the
marked text must equal the plain text; if not, it isn't used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.meta import find_undeclared_variables

from logitcache.data.chat.date import FixedDate
from logitcache.data.chat.messages import Message
from logitcache.errors import DataError
from logitcache.utils.reasons import reason

_MARK_VARIABLE = "logitcache_mark"
_SEARCHES = frozenset({"startswith", "endswith", "split", "rsplit", "find", "rfind", "index", "count", "replace"})
# Private-use code points. The first one that isn't in the text is used.
_MARKS = [chr(0xF1E00 + i) for i in range(256)]


@dataclass(frozen=True, eq=False)
class Rendering:
    """A conversation's text.

    Attributes:
        text: the text without marks.
        message_spans: for each message its begin and end in ``text``; None if the template writes nothing for it, or
            writes it outside of its loops.
    """

    text: str
    message_spans: list[tuple[int, int] | None]


class Template:
    """A compiled chat template.

    Args:
        source: Jinja text.
        special_tokens: variables such as ``bos_token``.
        date: the date that the template gets as today, YYYY-MM-DD; with None the template's own, see
            :class:`~logitcache.data.chat.date.FixedDate`.

    Raises:
        DataError: it isn't a Jinja template, or not a date.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any], date: str | None = None) -> None:
        # Imported late, because transformers is slow to import and many commands don't need it.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            # The sandbox, filters and tags that apply_chat_template uses.
            self._environment: Environment = _compile_jinja_template(source).environment
            tree = self._environment.parse(source)
        except TemplateError as error:
            raise DataError(f"the chat template isn't valid Jinja: {reason(error)}") from error
        self._source = source
        self._special_tokens = dict(special_tokens)
        self.date = FixedDate(tree, date)
        #: Names of the variables that the template reads.
        self.variables = frozenset(find_undeclared_variables(tree))
        #: Texts that the template searches for in messages, such as ``/no_think``.
        self.searched_texts = tuple(sorted(set(_find_searched_texts(tree))))
        self._plain = self._environment.from_string(source, globals={"strftime_now": self.date.strftime})

    def render(self, messages: list[Message], variables: Mapping[str, Any], *, prompt: bool = False) -> str:
        """Render a conversation.

        Args:
            messages: as :func:`~logitcache.data.chat.messages.normalise` returns them.
            variables: the template's other variables.
            prompt: write the generation prompt at the end.

        Raises:
            Exception: any error of the template.
        """
        return str(self._plain.render(**self._context(messages, variables, prompt)))

    def render_with_spans(
        self, messages: list[Message], variables: Mapping[str, Any], *, prompt: bool = False
    ) -> Rendering | None:
        """Render a conversation and find the span of each message; None if the spans can't be found.

        Raises:
            Exception: any error of the template.
        """
        text = self.render(messages, variables, prompt=prompt)
        mark = next((mark for mark in _MARKS if mark not in text), None)
        if mark is None:
            return None
        numbers = {id(message): number for number, message in enumerate(messages)}
        context = self._context(messages, variables, prompt)
        marked = self._marked.render(**context, **{_MARK_VARIABLE: _marker(mark, numbers)})
        pieces = re.split(f"{mark}(b|e)([0-9]+):([0-9]*){mark}", marked)
        if "".join(pieces[::4]) != text:
            return None
        return _make_rendering(text, pieces, len(messages))

    def _context(self, messages: list[Message], variables: Mapping[str, Any], prompt: bool) -> dict[str, Any]:
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        return {**given, "messages": messages, "add_generation_prompt": prompt}

    @cached_property
    def _marked(self) -> Any:
        tree = self._environment.parse(self._source)
        _mark_loops(tree)
        tree.set_environment(self._environment)
        return self._environment.from_string(tree, globals={"strftime_now": self.date.strftime})


def _find_searched_texts(tree: nodes.Template) -> Iterator[str]:
    for comparison in tree.find_all(nodes.Compare):
        left = comparison.expr
        if isinstance(left, nodes.Const) and any(operand.op in ("in", "notin") for operand in comparison.ops):
            yield from [left.value] if isinstance(left.value, str) else []
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
            yield from (arg.value for arg in call.args if isinstance(arg, nodes.Const) and isinstance(arg.value, str))


def _mark_loops(tree: nodes.Template) -> None:
    """Add calls of the marker at the beginning and end of each loop's body, and after each loop."""
    number = 0
    for node in [tree, *tree.find_all(nodes.Node)]:
        for _, value in node.iter_fields():
            if not isinstance(value, list) or not any(isinstance(item, nodes.For) for item in value):
                continue
            changed: list[nodes.Node] = []
            for item in value:
                changed.append(item)
                if isinstance(item, nodes.For) and isinstance(item.target, nodes.Name) and _may_write(item):
                    number += 1
                    begin = _call("b", str(number), nodes.Name(item.target.name, "load"), item.lineno)
                    end = _call("e", str(number), nodes.Const(None), item.lineno)
                    item.body = [begin, *item.body, end]
                    changed.append(end)
            value[:] = changed


def _may_write(loop: nodes.For) -> bool:
    """False for loops that write nothing. Templates run such loops over all messages inside of other loops."""
    pieces = [piece for output in loop.find_all(nodes.Output) for piece in output.nodes]
    return any(not isinstance(piece, nodes.TemplateData) or bool(piece.data.strip()) for piece in pieces)


def _call(kind: str, loop: str, message: nodes.Expr, lineno: int) -> nodes.Output:
    arguments: list[nodes.Expr] = [nodes.Const(kind), nodes.Const(loop), message]
    call = nodes.Call(nodes.Name(_MARK_VARIABLE, "load"), arguments, [], None, None)
    output = nodes.Output([call])
    return output.set_lineno(lineno, override=True)  # type: ignore[return-value]


def _marker(mark: str, numbers: dict[int, int]) -> Callable[[str, str, Any], str]:
    """The function that writes marks. Only loops over messages get them: a template may test the text of others."""
    over_messages: set[str] = set()

    def write(kind: str, loop: str, item: Any) -> str:
        number = numbers.get(id(item)) if kind == "b" else None
        if number is not None:
            over_messages.add(loop)
            return f"{mark}b{loop}:{number}{mark}"
        return f"{mark}e{loop}:{mark}" if loop in over_messages else ""

    return write


def _make_rendering(text: str, pieces: list[str], count: int) -> Rendering:
    """The spans, from a text that was split at its marks: text, kind, loop, message, text, …

    A body that ends early (``continue``) has no mark at its end. The next mark of its loop ends it.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    open_bodies: list[tuple[str, int, int]] = []
    position = len(pieces[0])
    for kind, loop, message, after in zip(pieces[1::4], pieces[2::4], pieces[3::4], pieces[4::4], strict=True):
        while any(loop == other for other, _, _ in open_bodies):
            other, inner, start = open_bodies.pop()
            if text[start:position].strip():
                found[inner].append((start, position))
            if other == loop:
                break
        if kind == "b":
            open_bodies.append((loop, int(message), position))
        position += len(after)
    return Rendering(text, _outermost(found))


def _outermost(found: list[list[tuple[int, int]]]) -> list[tuple[int, int] | None]:
    """For each message the span that isn't inside another message's span.

    A message that is written twice has no single span, so the result is None for it.
    """
    every = sorted((start, -stop, number) for number, spans in enumerate(found) for start, stop in spans)
    outer: list[list[tuple[int, int]]] = [[] for _ in found]
    reached = -1
    for start, minus_stop, number in every:
        if -minus_stop > reached:
            outer[number].append((start, -minus_stop))
            reached = -minus_stop
    return [spans[0] if len(spans) == 1 else None for spans in outer]
