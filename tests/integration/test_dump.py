"""Dumps of real small models: every stored value is recomputed, one sequence at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dump_tools import TINY, check_every_row
from transformers import (
    AutoModelForCausalLM,
)

import logitcache as lc
from logitcache.data import TokenSequence
from logitcache.dump import LowMassWarning, config_path, plan_dump
from logitcache.dump.assemble import Computed
from logitcache.dump.worker import _rounded, _typical
from logitcache.engines.transformers_engine import TransformersEngine
from logitcache.losses.tail import represent_tail

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def mixed_rows(tmp_path_factory: pytest.TempPathFactory, heldout_text: Path) -> list[str]:
    """Sentences, chat, prompt and completion, token ids, and packed token ids, in five files."""
    root = tmp_path_factory.mktemp("rows")
    paragraphs = [sentence.strip() for sentence in heldout_text.read_text().split(".")[:20]]
    files = {
        "text.jsonl": [{"text": text} for text in paragraphs],
        "chat.jsonl": [
            {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
            for a, b in zip(paragraphs[::2], paragraphs[1::2], strict=True)
        ],
        "pairs.jsonl": [{"prompt": text[:40], "completion": text[40:90]} for text in paragraphs[:5]],
        "ids.jsonl": [{"input_ids": list(range(100 + n, 150 + 2 * n))} for n in range(5)],
        # Packed in the corpus itself: several documents in a row, and the first token of each isn't a target.
        "packed.jsonl": [
            {
                "input_ids": [*range(300, 320), 0, *range(400, 430 + n), 0],
                "labels": [-100, *range(301, 320), 0, -100, *range(401, 430 + n), 0],
            }
            for n in range(3)
        ],
    }
    for name, rows in files.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(root / name) for name in files]


def test_smollm2_every_row(smollm2_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    text = tmp_path / "address.txt"
    text.write_text(heldout_text.read_text()[:1600])
    cache = lc.dump(teacher=str(smollm2_dir), data=[str(text)], out=tmp_path / "out", max_length=128, top_k=64)
    assert cache.top_k == 64
    assert cache.vocab_size == 49_152
    assert sum(len(sequence.token_ids) for sequence in cache) > 300
    decoded = cache.load_tokenizer().decode(torch.cat([sequence.token_ids for sequence in cache]))
    assert decoded == text.read_text() + "<|endoftext|>"
    check_every_row(cache, smollm2_dir, noise=2e-3)


def test_smollm2_chat(smollm2_dir: Path, mixed_rows: list[str], tmp_path: Path) -> None:
    rows = tmp_path / "few.jsonl"
    rows.write_text("".join("".join(Path(path).read_text().splitlines(keepends=True)[:2]) for path in mixed_rows[1:3]))
    cache = lc.dump(
        teacher=str(smollm2_dir), data=mixed_rows[1:3], out=tmp_path / "out", max_length=96, long_rows="truncate"
    )
    assert cache.manifest.provenance.positions == "completion"
    check_every_row(cache, smollm2_dir, noise=2e-3)


@pytest.mark.parametrize("shard_format", ["zarr", "arrow"])
def test_mixed_rows(tiny_llama_dir: Path, mixed_rows: list[str], tmp_path: Path, shard_format: str) -> None:
    cache = lc.dump(
        teacher=str(tiny_llama_dir), data=mixed_rows, out=tmp_path / "out", shard_format=shard_format, overlap=8, **TINY
    )
    assert len(cache.shards) > 3
    check_every_row(cache, tiny_llama_dir, noise=1e-4)


def test_batches_and_workers_do_not_change_the_content(
    tiny_llama_dir: Path, mixed_rows: list[str], tmp_path: Path
) -> None:
    def digest(name: str, **settings: Any) -> str:
        settings = TINY | {"teacher": str(tiny_llama_dir), "data": mixed_rows, "out": tmp_path / name} | settings
        return lc.dump(**settings).digest

    first = digest("first")
    assert digest("again") == first
    assert digest("last-worker", rank=3, world_size=4) == first
    assert digest("statistics", statistics=True) != first


def test_a_sample_of_the_tail(smollm2_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    """Every drawn entry has the teacher's value, and over many rows each id's weights add up to its probability."""
    text = tmp_path / "address.txt"
    text.write_text(heldout_text.read_text()[:4000])
    settings: dict[str, Any] = {"teacher": str(smollm2_dir), "data": [str(text)], "max_length": 128, "top_k": 24}
    cache = lc.dump(out=tmp_path / "drawn", tail_samples=16, **settings)
    assert (cache.top_k, cache.ranked) == (24, 8)
    check_every_row(cache, smollm2_dir, noise=2e-3)
    again = lc.dump(out=tmp_path / "again", tail_samples=16, shard_tokens=200, **settings)
    # Which ids are drawn doesn't depend on how the work was cut, but for the rounding of other batches.
    same = [one.targets.ids == two.targets.ids for one, two in zip(cache, again, strict=True)]
    assert float(torch.cat(same).double().mean()) > 0.98
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    vocab = torch.arange(cache.vocab_size)
    exact, found = torch.zeros(2, 8, dtype=torch.float64)
    for sequence in cache:
        with torch.no_grad():
            logits = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions]
        own, targets = logits.log_softmax(1).exp().double(), sequence.targets
        exact += torch.stack([own.scatter(1, targets.ids[:, :8], 0)[:, vocab % 8 == part].sum() for part in range(8)])
        mass, drawn = represent_tail(targets, 1.0).exp().double()[:, 8:], targets.ids[:, 8:]
        found += torch.stack([mass[drawn % 8 == part].sum() for part in range(8)])
    assert float(exact.sum()) > 50  # probability outside the top 8, of all rows together
    torch.testing.assert_close(found, exact, rtol=0.06, atol=0)


def test_statistics_restore_raw_logits(tiny_llama_dir: Path, mixed_rows: list[str], tmp_path: Path) -> None:
    settings = TINY | {"statistics": True, "preset": "exact"}
    cache = lc.dump(teacher=str(tiny_llama_dir), data=mixed_rows[:1], out=tmp_path / "out", **settings)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    sequence = cache[0]
    with torch.no_grad():
        logits = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions]
    targets = sequence.targets
    assert targets.log_partition is not None
    assert targets.logit_std is not None
    raw = targets.logprobs + targets.log_partition[:, None]
    torch.testing.assert_close(raw, logits.gather(1, targets.ids), atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.logit_std, logits.std(1), atol=1e-4, rtol=1e-4)


def test_low_mass_names_a_sufficient_k(tiny_llama_dir: Path, mixed_rows: list[str], tmp_path: Path) -> None:
    settings: dict[str, Any] = TINY | {"min_mass": 0.5}
    with pytest.warns(LowMassWarning, match=r"the top 16 cover 0% .*; 50% need about --top-k (\d+)") as caught:
        lc.dump(teacher=str(tiny_llama_dir), data=mixed_rows[:1], out=tmp_path / "out", **settings)
    message = next(str(warning.message) for warning in caught if warning.category is LowMassWarning)
    needed = int(message.split("--top-k ")[1].split(".")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowMassWarning)
        settings |= {"top_k": needed + 200, "shard_tokens": 64}
        lc.dump(teacher=str(tiny_llama_dir), data=mixed_rows[:1], out=tmp_path / "enough", **settings)


def test_the_k_is_that_of_a_typical_sequence() -> None:
    sequences = [TokenSequence(np.zeros(n, np.uint32), np.arange(n) < n - 1) for n in (3, 9, 9, 7)]
    masses = [torch.tensor([0.1] * 8 + [0.5] * 2), torch.tensor([0.6] * 6 + [0.9] * 8)]
    targets = lc.TopK.from_logits(torch.randn(1, 5), 2)
    computed = Computed(sequences, [([1, 0], targets), ([3, 2], targets)])
    assert _typical(computed, masses, 0.5) is sequences[3]
    assert _typical(computed, masses, 0.95) is sequences[2]


def test_the_k_is_more_than_was_kept() -> None:
    kept = lc.TopK.from_logits(torch.randn(1, 50), 29)
    assert [_rounded(needed, kept) for needed in (18, 29, 32, 33, 49)] == [32, 32, 32, 40, 50]


def test_command_line(tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = tmp_path / "settings.yaml"
    settings.write_text("top-k: 4\nmax_length: 64\nlicence: CC0-1.0\nmin-mass: 0\n")
    command = [str(Path(sys.executable).with_name("logitcache")), "dump", "--config", str(settings)]
    command += [
        "--teacher",
        str(tiny_llama_dir),
        "--data",
        str(heldout_text),
        "--out",
        str(out),
        "--top-k",
        "5",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    cache = lc.open(out)
    assert answer["digest"] == cache.digest
    assert answer["sequences"] == len(cache)
    assert cache.top_k == 5
    assert cache.manifest.card.licence == "CC0-1.0"
    saved = yaml.safe_load(config_path(out).read_text())
    assert saved["max_length"] == 64
    assert lc.dump(**saved | {"out": tmp_path / "again"}).digest == cache.digest


def test_two_processes_under_torchrun(tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    """As with one process per GPU: each reads its rank from the environment, and gloo compares the results."""
    script = tmp_path / "both.py"
    script.write_text(
        "import os, sys, torch.distributed as dist, logitcache as lc\n"
        "from logitcache.cli.dump import dump\n"
        "from pathlib import Path\n"
        "dist.init_process_group('gloo')\n"
        "dump(teacher=sys.argv[1], data=[sys.argv[2]], out=Path(sys.argv[3]), top_k=8, max_length=64,\n"
        "     shard_tokens=256, min_mass=0.0)\n"
        "digests = [None, None]\n"
        "dist.all_gather_object(digests, lc.open(sys.argv[3]).digest)\n"
        "assert digests[0] == digests[1], digests\n"
        "dist.barrier()\n"
        # gloo's threads now and then abort a process whose peer leaves first: leave without their clearing up.
        "os._exit(0)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    subprocess.run(
        [*command, str(tiny_llama_dir), str(heldout_text), str(tmp_path / "two")],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    alone = lc.dump(
        teacher=str(tiny_llama_dir),
        data=[str(heldout_text)],
        out=tmp_path / "one",
        top_k=8,
        max_length=64,
        shard_tokens=256,
        min_mass=0.0,
    )
    assert lc.open(tmp_path / "two").digest == alone.digest


def test_dry_run_writes_nothing_and_is_right(tiny_llama_dir: Path, mixed_rows: list[str], tmp_path: Path) -> None:
    settings: dict[str, Any] = TINY | {"teacher": str(tiny_llama_dir), "data": mixed_rows, "out": tmp_path / "out"}
    planned = plan_dump(**settings, rank=1, world_size=3)
    assert not any(tmp_path.iterdir())
    cache = lc.dump(**settings)
    totals = cache.manifest.totals
    assert (planned.sequences, planned.tokens, planned.targets, planned.shards) == (
        totals.sequences,
        totals.tokens,
        totals.targets,
        totals.shards,
    )
    assert planned.rows == sum(len(Path(path).read_text().splitlines()) for path in mixed_rows)
    assert 0.5 < planned.bytes / totals.bytes < 2
    assert sum(share.tokens for share in planned.workers) == totals.tokens
    assert planned.tokens_per_second > 0


def test_batch_that_does_not_fit_is_halved(
    tiny_llama_dir: Path, mixed_rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TransformersEngine._run

    def small(self: TransformersEngine, batch: Any) -> lc.TopK:
        if len(batch) > 1:
            raise torch.OutOfMemoryError
        return real(self, batch)

    settings: dict[str, Any] = TINY | {"teacher": str(tiny_llama_dir), "data": mixed_rows[:1]}
    roomy = lc.dump(**settings, out=tmp_path / "roomy")
    monkeypatch.setattr(TransformersEngine, "_run", small)
    tight = lc.dump(**settings, out=tmp_path / "tight")
    assert roomy.manifest.totals.targets == tight.manifest.totals.targets
    check_every_row(tight, tiny_llama_dir, noise=1e-4)
