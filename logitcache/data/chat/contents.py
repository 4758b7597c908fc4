"""Find out whether a chat template accepts contents that are text, lists of parts, or both.

Templates of text models insert the content as it is. Templates of image-text models often loop over its parts, and
write nothing for a text. Both kinds of content are tried with two short messages.
"""

from __future__ import annotations

from typing import Any

from logitcache.data.chat.template import Template

_TEXTS = ("Xyzzy plugh", "Plover quux")


def accepted_contents(template: Template) -> tuple[bool, bool]:
    """Whether the template writes contents that are text, and those that are lists of ``{"type": "text", "text": …}``.

    If it writes neither, for example because it requires more than two messages, the first value is True.
    """
    text = _keeps_texts(template, list(_TEXTS))
    parts = _keeps_texts(template, [[{"type": "text", "text": said}] for said in _TEXTS])
    return text or not parts, parts


def _keeps_texts(template: Template, contents: list[Any]) -> bool:
    messages = [{"role": role, "content": said} for role, said in zip(("user", "assistant"), contents, strict=True)]
    try:
        text = template.render(messages, {})
    except Exception:  # noqa: BLE001
        return False
    # A template that inserts the list itself shows its Python or JSON form.
    return all(said in text for said in _TEXTS) and '"type"' not in text and "'type'" not in text
