"""The tokenizer in a cache: its files, and a digest of which id each token has."""

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
    """``sha256:…`` over every (id, token) of a tokenizer, added tokens included, in order of id.

    Tokenizers with equal digests give each id the same meaning, even if their files differ in other ways. So a student
    with one can learn from a cache with the other. The length of a model's logit vector doesn't change the digest.

    Args:
        tokenizer: a ``transformers`` tokenizer, or anything with ``get_vocab() -> dict[str, int]``.
    """
    digest = hashlib.sha256()
    for number, token in sorted((number, token) for token, number in tokenizer.get_vocab().items()):
        text = token.encode("utf-8", "surrogatepass")
        digest.update(f"{number} {len(text)} ".encode("ascii") + text + b"\n")
    return "sha256:" + digest.hexdigest()


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files that ``save_pretrained`` writes: content by name, for ``finalize_cache``.

    Raises:
        ModelError: the tokenizer needs a file that a cache can't hold, such as Python code.
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
    """Remove the path that the tokenizer was loaded from. It is private, and it would make equal tokenizers differ."""
    if name != "tokenizer_config.json":
        return content
    settings = json.loads(content)
    kept = {key: value for key, value in settings.items() if key not in _ORIGIN}
    return (json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
