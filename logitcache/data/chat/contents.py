"""Whether a chat template takes contents that are text, lists of parts, or both.

Templates of text models paste the content as it is; those of image-text models often go over its parts, and write
nothing for a text. Both are tried on two short messages.
"""

from __future__ import annotations

from typing import Any

from logitcache.data.chat.template import Template

_SAID = ("Xyzzy plugh", "Plover quux")


def contents_taken(template: Template) -> tuple[bool, bool]:
    """Whether text, and whether lists of ``{"type": "text", "text": …}``, come out as the text they hold.

    Where neither does, as with templates that insist on more than two messages, text is taken to be.
    """
    text = _comes_out(template, list(_SAID))
    parts = _comes_out(template, [[{"type": "text", "text": said}] for said in _SAID])
    return text or not parts, parts


def _comes_out(template: Template, contents: list[Any]) -> bool:
    messages = [{"role": role, "content": said} for role, said in zip(("user", "assistant"), contents, strict=True)]
    try:
        text = template.render(messages, {})
    except Exception:  # noqa: BLE001
        return False
    # A list pasted as it is shows its own notation.
    return all(said in text for said in _SAID) and '"type"' not in text and "'type'" not in text
