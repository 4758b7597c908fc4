"""Speed of a git revision and of the working tree, side by side: what a change gained or cost.

    python -m benchmarks.before_after --base HEAD~10 --repeats 5

Measured are a whole dump; encoding a shard, and reading and decoding it, Zarr and Arrow, of the default size and of
8,192 tokens; a pass of the loader; a training step; and the output head with BiLD, forward and backward. Each measure
runs in a fresh process, for the base and for the working tree in turn, and each goes first every other time, so that a
drift of the machine helps neither. The base is checked out in a temporary folder, the working tree is copied there as
it is at the start. Use it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks._before_after_measures import MEASURES, TOP_K
from benchmarks._markdown import table
from benchmarks._prose import add_arguments, join, prose_cache, split
from benchmarks._teacher import DATA, REPO
from benchmarks.train_wait import llama_config
from logitcache.format.arrays import ShardArrays
from logitcache.utils.progress import progress_bars

SMALL_SHARD = 8192
TEXT = DATA / "heldout" / "1964_lyndon_b_johnson.txt"
#: Layers, width, feed-forward width, heads, key-value heads.
STUDENT = (4, 576, 1536, 9, 3)
# An editable install would find modules of the working tree that the base lacks.
START = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
runpy.run_module("benchmarks._before_after_measures", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Side:
    """A revision: its name, the folder that holds its ``logitcache``, and a folder for what it writes."""

    name: str
    tree: Path
    own: Path


@dataclass(frozen=True)
class Pairs:
    """Seconds of one piece of work, by turn."""

    old: list[float]
    new: list[float]

    @property
    def ratios(self) -> list[float]:
        """Speed of the working tree over that of the base, turn by turn."""
        return [old / new for old, new in zip(self.old, self.new, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        return {"base_seconds": self.old, "new_seconds": self.new, "speed_ratios": self.ratios}


def git(*arguments: str) -> str:
    """What git prints; leaves with its message where it fails."""
    done = subprocess.run(["git", "-C", str(REPO), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def checked_out(revision: str, place: Path) -> Iterator[None]:
    """The revision's ``logitcache`` as a git worktree, while the context lasts."""
    git("worktree", "add", "--quiet", "--detach", "--no-checkout", str(place), revision)
    try:
        git("-C", str(place), "checkout", "--quiet", revision, "--", "logitcache")
        yield
    finally:
        git("worktree", "remove", "--force", str(place))


def write_inputs(shared: Path, options: argparse.Namespace) -> None:
    """Real targets as plain arrays, a text, and a small student with random weights."""
    arrays = join(prose_cache(options), TOP_K)
    _save(shared / "whole.npz", arrays)
    for number, part in enumerate(split(arrays, SMALL_SHARD)):
        _save(shared / f"shard-{number:02}.npz", part)
    shutil.copy(TEXT, shared / "text.txt")
    (shared / "short.txt").write_text(TEXT.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    LlamaForCausalLM(llama_config(arrays.vocab_size, *STUDENT)).save_pretrained(shared / "student")
    AutoTokenizer.from_pretrained(options.teacher).save_pretrained(shared / "student")


def _save(path: Path, arrays: ShardArrays) -> None:
    np.savez(path, allow_pickle=False, vocab_size=np.int64(arrays.vocab_size), **arrays.columns())


def measured(measure: str, side: Side, shared: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds by piece of work, from a process of its own."""
    command = [sys.executable, "-P", "-c", START, measure]
    command += ["--tree", str(side.tree), "--shared", str(shared), "--own", str(side.own)]
    command += ["--teacher", str(options.teacher), "--threads", str(options.threads)]
    # The revision's folder has no `benchmarks`, so that comes from the working tree for both.
    environment = os.environ | {
        "PYTHONPATH": f"{side.tree}{os.pathsep}{REPO}",
        "BEFORE_AFTER_STARTED": str(time.time()),
    }
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise SystemExit(f"{measure} failed with the logitcache of {side.name}:\n{last}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(sides: tuple[Side, Side], shared: Path, options: argparse.Namespace) -> dict[str, Pairs]:
    """Each measure so many times, base and working tree in turn."""
    results: dict[str, Pairs] = {}
    turns, done = 2 * options.repeats * len(options.only), 0
    with progress_bars(Console(stderr=True)) as report:
        for number, side in enumerate(sides):
            report("preparing", number, len(sides), "revisions")
            measured("prepare", side, shared, options)
        report("preparing", len(sides), len(sides), "revisions")
        for repeat in range(options.repeats):
            for measure in options.only:
                found = {}
                for side in sides if repeat % 2 == 0 else sides[::-1]:
                    report("measuring", done, turns, "runs")
                    found[side] = measured(measure, side, shared, options)
                    done += 1
                for name, seconds in found[sides[0]].items():
                    pairs = results.setdefault(name, Pairs([], []))
                    pairs.old.append(seconds)
                    pairs.new.append(found[sides[1]][name])
        report("measuring", done, turns, "runs")
    return results


def markdown(results: dict[str, Pairs]) -> str:
    """The table: medians, and the ratio of the speeds with its range."""
    rows = [
        [
            name,
            f"{statistics.median(pairs.old):.4g}",
            f"{statistics.median(pairs.new):.4g}",
            f"{statistics.median(pairs.ratios):.2f}x",
            f"{min(pairs.ratios):.2f} to {max(pairs.ratios):.2f}",
        ]
        for name, pairs in results.items()
    ]
    speed = "speed of new over base (above 1: new is faster)"
    return table(["work", "base, seconds", "new, seconds", speed, "lowest and highest pair"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--base", required=True, metavar="REV", help="the revision to compare with")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each measure")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    parser.add_argument("--json", type=Path, help="write every pair there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the worktree is removed then, too
    base = git("rev-parse", "--short", "--verify", f"{options.base}^{{commit}}")
    new = git("describe", "--always", "--dirty")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = folder / "shared"
        sides = (Side(base, folder / "base", folder / "base-own"), Side(new, folder / "new", folder / "new-own"))
        for place in (shared, sides[0].own, sides[1].own):
            place.mkdir()
        shutil.copytree(REPO / "logitcache", sides[1].tree / "logitcache")
        with checked_out(base, sides[0].tree):
            write_inputs(shared, options)
            results = compare(sides, shared, options)
    title = f"Base {base}, new {new}; {options.repeats} pairs, {options.threads} threads. Medians."
    text = f"{title}\n\n{markdown(results)}\n"
    print(text, end="")
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        found = {name: pairs.as_dict() for name, pairs in results.items()}
        options.json.write_text(
            json.dumps({"base": base, "new": new, "work": found}, indent=2) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
