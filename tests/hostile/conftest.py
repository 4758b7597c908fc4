"""What several of these modules run: a dump of a few words by a tiny teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dump_tools import WORDS

import logitcache as lc


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def dump(tiny_llama_dir: Path, text: Path, tmp_path: Path) -> Any:
    def call(**settings: Any) -> lc.Cache:
        return lc.dump(
            **{
                "teacher": str(tiny_llama_dir),
                "data": [str(text)],
                "out": tmp_path / "out",
                "top_k": 8,
                "max_length": 64,
                "shard_tokens": 64,
                "min_mass": 0.0,
            }
            | settings
        )

    return call
