"""A cache carries its tokenizer: the files, and a digest that says how tokens are numbered."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from logitcache.errors import ModelError
from logitcache.format.manifest import TOKENIZER_FILE_PATTERN

_ORIGIN = frozenset({"name_or_path", "is_local", "local_files_only", "_commit_hash", "cache_dir", "token"})
_NAME = re.compile(TOKENIZER_FILE_PATTERN)


def tokenizer_digest(tokenizer: Any) -> str:
    """``sha256:…`` over a tokenizer's numbering: every (id, token), added ones too, in order of id.

    Tokenizers with equal digests give each id the same meaning, whatever else their files say, so a student of one can
    learn from a cache of the other. The length of a model's logit vector has no part in it.

    Args:
        tokenizer: a ``transformers`` tokenizer, or anything with ``get_vocab() -> dict[str, int]``.
    """
    digest = hashlib.sha256()
    for number, token in sorted((number, token) for token, number in tokenizer.get_vocab().items()):
        text = token.encode("utf-8", "surrogatepass")
        digest.update(f"{number} {len(text)} ".encode("ascii") + text + b"\n")
    return "sha256:" + digest.hexdigest()


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files that ``save_pretrained`` writes, by name, as ``finalize_cache`` takes them.

    Raises:
        ModelError: the tokenizer needs a file that a cache doesn't carry, such as Python code.
    """
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        files = {path.relative_to(directory).as_posix(): path for path in Path(directory).rglob("*") if path.is_file()}
        refused = sorted(name for name in files if not _NAME.fullmatch(name))
        if refused:
            raise ModelError(
                f"the tokenizer saves {refused[0]!r}, which a cache doesn't carry (plain data files only, no code): "
                "use a tokenizer that transformers knows without remote code"
            )
        return {name: _without_origin(name, path.read_bytes()) for name, path in files.items()}


def _without_origin(name: str, content: bytes) -> bytes:
    """Drop the path that the tokenizer was loaded from: it is private, and equal tokenizers would differ by it."""
    if name != "tokenizer_config.json":
        return content
    settings = json.loads(content)
    kept = {key: value for key, value in settings.items() if key not in _ORIGIN}
    return (json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
