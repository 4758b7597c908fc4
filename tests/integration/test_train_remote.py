"""A real cache is pushed to the S3 server, and training from there equals training from disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3Server
from share_tools import assert_same_content, s3
from transformers import LlamaConfig, LlamaForCausalLM

import logitcache as lc
from logitcache.cache.selection import Selection
from logitcache.dump import make_config
from logitcache.dump.to_store import dump_staged, dump_to, find_dump, staging_directory
from logitcache.errors import OutputExistsError
from logitcache.share.merging import merge
from logitcache.share.pulling import pull
from logitcache.share.pushing import push

pytestmark = pytest.mark.integration
__all__ = ["s3"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data" / "train"


def settings_of(teacher: Path, text: Path) -> dict[str, Any]:
    return {
        "teacher": str(teacher),
        "data": [str(text)],
        "top_k": 8,
        "max_length": 64,
        "shard_tokens": 256,
        "min_mass": 0.0,
    }


@pytest.fixture(scope="module")
def caches(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two teams dump one teacher over different addresses."""
    root = tmp_path_factory.mktemp("dumps")
    (root / "teacher.json").write_text(json.dumps(str(tiny_llama_dir)))
    for number, address in enumerate(sorted(EXAMPLES.glob("*.txt"))[:2]):
        text = root / f"address{number}.txt"
        text.write_text(address.read_text(encoding="utf-8")[:6_000], encoding="utf-8")
        lc.dump(**settings_of(tiny_llama_dir, text), out=root / f"team{number}")
    return [root / "team0", root / "team1"]


@pytest.fixture(scope="module")
def student(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model with the same tokenizer."""
    path = tmp_path_factory.mktemp("models") / "student"
    config = LlamaConfig.from_pretrained(tiny_llama_dir)
    config.num_hidden_layers = 1
    LlamaForCausalLM(config).save_pretrained(path)
    for item in tiny_llama_dir.glob("*token*"):
        (path / item.name).write_bytes(item.read_bytes())
    return path


def train(cache: str | Path, student: Path, out: Path) -> list[float]:
    """The loss of every step."""
    result = lc.train(cache=str(cache), student=str(student), out=out, max_steps=4, batch_size=8)
    return [entry["loss"] for entry in result.history if "loss" in entry]


def test_training_from_s3_equals_training_from_disk(
    s3: S3Server, caches: list[Path], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.place()
    push(caches[0], f"{url}@latest")
    expected = train(caches[0], student, tmp_path / "from-disk")
    assert len(expected) == 4
    assert train(f"{url}@latest", student, tmp_path / "from-s3") == expected
    with FaultyProxy(s3.s3, 0.2, seed=2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("LOGITCACHE_CACHE_DIR", str(tmp_path / "another"))
        monkeypatch.setenv("LOGITCACHE_STALL_SECONDS", "1")
        assert train(f"{url}@latest", student, tmp_path / "from-bad-s3") == expected
        assert proxy.failed


def test_two_teams_merge_and_a_third_takes_part(
    s3: S3Server, caches: list[Path], student: Path, tmp_path: Path
) -> None:
    url = s3.place()
    for number, cache in enumerate(caches):
        push(cache, f"{url}@team-{number}")
    merged = merge([f"{url}@team-0", f"{url}@team-1"], f"{url}@both")
    assert merged.duplicates == 0
    assert merged.transfer.moved_shards == 0
    both, parts = lc.open(f"{url}@both"), [lc.open(cache) for cache in caches]
    assert len(both) == sum(map(len, parts))
    assert both.manifest.provenance.parents == tuple(part.digest for part in parts)
    pull(f"{url}@both", tmp_path / "all", Selection(sequences=(0, len(parts[0]))))
    assert_same_content(lc.open(tmp_path / "all"), parts[0])
    # The digest over the tokens is the one that the dump gave the same tokens.
    assert lc.open(tmp_path / "all").manifest.provenance.corpus_digest == parts[0].manifest.provenance.corpus_digest
    metrics = lc.evaluate(f"{url}@both", str(student))
    assert metrics is not None


def test_commands_take_urls(s3: S3Server, caches: list[Path], tmp_path: Path) -> None:
    url = s3.place()
    push(caches[0], url)
    command = [str(Path(sys.executable).with_name("logitcache"))]
    text = str(caches[0].parent / "address0.txt")
    teacher = json.loads((caches[0].parent / "teacher.json").read_text())
    dumping = [*command, "dump", "--teacher", teacher, "--data", text, "--top-k", "8", "--max-length", "64", "--json"]
    dumping += ["--shard-tokens", "256", "--min-mass", "0"]
    for extra in (["--reuse", url, "--out", str(tmp_path / "never")], ["--out", f"{url}/dumped"]):
        done = subprocess.run([*dumping, *extra], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["digest"] == lc.open(caches[0]).digest
    assert not (tmp_path / "never").exists()
    assert lc.open(f"{url}/dumped").digest == lc.open(caches[0]).digest
    for arguments in (["info", url, "--json"], ["verify", url, "--json"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env={**os.environ})
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)


def test_dump_to_a_store_and_never_twice(
    s3: S3Server, caches: list[Path], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    url = s3.place()
    settings = settings_of(tiny_llama_dir, caches[0].parent / "address0.txt")
    config = make_config({**settings, "out": tmp_path / "never"})
    assert find_dump(url, config) is None
    # The dump is done, but the push was interrupted: the next call only pushes.
    dump_staged(make_config({**settings, "out": staging_directory(f"{url}@first")}), f"{url}@first")
    with pytest.raises(OutputExistsError, match="other settings"):
        dump_to(f"{url}@first", settings | {"top_k": 7})
    sent = dump_to(f"{url}@first", settings)
    assert sent.digest == lc.open(caches[0]).digest == lc.open(f"{url}@first").digest
    assert not staging_directory(f"{url}@first").exists()
    with pytest.raises(OutputExistsError, match="stands for"):
        dump_to(f"{url}@first", settings)
    found = find_dump(url, config)
    assert found is not None
    assert found.address == f"{url}@{sent.digest}"
    differences = {"top_k": 9, "preset": "tiny", "statistics": True, "max_length": 32, "engine": "another"}
    for name, value in differences.items():
        assert find_dump(url, config.model_copy(update={name: value})) is None
    other = config.model_copy(update={"data": (str(caches[0].parent / "address1.txt"),)})
    assert find_dump(url, other) is None
    assert not (tmp_path / "never").exists()
