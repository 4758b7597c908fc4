"""A small cache in each shard format, for all that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cache_builder import FORMATS, SHARDS, build_cache


@pytest.fixture(scope="session", params=FORMATS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("cache") / request.param
    build_cache(path, request.param, SHARDS)
    return path
