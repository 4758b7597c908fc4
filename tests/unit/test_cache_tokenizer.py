"""The tokenizer in a cache: its files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cache_builder import build_cache
from transformers import AutoTokenizer

import logitcache as lc
from logitcache.cache.tokenizer import tokenizer_digest, tokenizer_files
from logitcache.errors import ConfigError


def test_the_tokenizer_travels(tmp_path: Path, tiny_llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    files = tokenizer_files(tokenizer)
    assert str(tiny_llama_dir).encode() not in b"".join(files.values())
    build_cache(tmp_path / "cache", tokenizer=files, tokenizer_digest=tokenizer_digest(tokenizer))
    loaded = lc.open(tmp_path / "cache").load_tokenizer()
    text = "The state of the union – 1964.\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)
    assert tokenizer_files(loaded) == files
    loaded.add_tokens(["<new>"])
    assert tokenizer_digest(loaded) != tokenizer_digest(tokenizer)


def test_a_tokenizer_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    code = b'{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    build_cache(tmp_path / "cache", tokenizer={"tokenizer_config.json": code})
    with pytest.raises(lc.LogitCacheError, match="can't load the tokenizer"):
        lc.open(tmp_path / "cache").load_tokenizer()
    build_cache(tmp_path / "none", tokenizer={})
    with pytest.raises(lc.LogitCacheError, match="carries no tokenizer"):
        lc.open(tmp_path / "none").load_tokenizer()
    with pytest.raises(ConfigError, match=r"tokenizer\.evil\.py"):
        build_cache(tmp_path / "code", tokenizer={"evil.py": b"print()"})
