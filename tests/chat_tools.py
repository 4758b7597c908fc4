"""Public chat templates, and a tokenizer that knows their special tokens."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from logitcache.data.chat import ChatTemplate, ChatTokens

OURS = Path(__file__).resolve().parent / "data" / "chat_templates"

CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris.\nIt lies on the Seine."},
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "Rome"},
]


def trl_templates() -> Path:
    """The folder of templates that TRL ships."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("trl isn't installed")
    return Path(found.origin).parent / "chat_templates"


def template(name: str) -> str:
    """A template from the tests' data, else from TRL."""
    own = OURS / f"{name}.jinja"
    return (own if own.exists() else trl_templates() / f"{name}.jinja").read_text()


def with_special_tokens(smollm2_dir: Path) -> Any:
    """SmolLM2's tokenizer with the special tokens of all these templates."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    sources = "".join(path.read_text() for path in [*sorted(OURS.glob("*")), *sorted(trl_templates().glob("*.jinja"))])
    written = set(re.findall(r"<\|[^|<>{}'\" ]+\|>|<｜[^'\"<>]+?｜>|<(?:start|end)_of_\w+>|<\|?turn\|?>", sources))
    written |= set(re.findall(r"<\|?tool_\w+\|>|<\|tool_\w+>", sources)) | {"<end_of_utterance>", "</s>"}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(written)})
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def shown(tokenizer: Any, row: ChatTokens) -> str:
    """The text with its targets in brackets: ``user: hi assistant: ⟦hello⟧``."""
    pieces, before = [], False
    for token, is_target in zip(row.token_ids, row.is_target_L, strict=True):
        pieces.append("⟦" if is_target and not before else "⟧" if before and not is_target else "")
        pieces.append(tokenizer.decode([token]))
        before = bool(is_target)
    return "".join(pieces) + ("⟧" if before else "")


def targets(tokenizer: Any, row: ChatTokens) -> list[str]:
    """The text of each run of targets."""
    return re.findall(r"⟦(.*?)⟧", shown(tokenizer, row), flags=re.DOTALL)


def chat(tokenizer: Any, name: str, **options: Any) -> ChatTemplate:
    """A named template with this tokenizer."""
    return ChatTemplate(tokenizer, template=template(name), **options)
