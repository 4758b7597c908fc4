"""Every architecture of the installed transformers that predicts a next token, as teacher and as student.

    python -m benchmarks.architectures --json sweep.json --markdown benchmarks/results/architectures.md

Each is built as a tiny random model in a process of its own, and what comes out of `dump`, `train` and `eval` is
compared with the model's own forward pass over one row at a time. Exit status 1 if anything is wrong: other numbers, or
an error that isn't one clear line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# Children are forked: a pool of threads in the parent would be dead in them.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from benchmarks._architectures_checks import USES, Part, Record, check
from benchmarks._architectures_configs import architectures
from benchmarks._architectures_shared import prepare
from benchmarks._architectures_table import counts, markdown, outcome

MEMORY = 12 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures, instead of all")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=120, help="time limit of one architecture")
    parser.add_argument("--json", type=Path, help="write one record an architecture")
    parser.add_argument("--markdown", type=Path, help="write the table for the docs")
    options = parser.parse_args()
    names = options.only or architectures()
    if unknown := sorted(set(names) - set(architectures())):
        parser.error(f"no architecture called {', '.join(unknown)}")
    records = sweep(names, options.jobs, options.seconds)
    if options.json:
        lines = [json.dumps({"outcome": outcome(record), **record.as_dict()}) for record in records]
        options.json.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(records), encoding="utf-8")
    print("; ".join(f"{count} {what}" for what, count in counts(records).items()))
    return 1 if any(wrong(record) for record in records) else 0


def wrong(record: Record) -> list[str]:
    """What is wrong with an architecture, one line a use."""
    parts = {use: getattr(record, use) for use in USES}
    return [f"{use}: {part.says}" for use, part in parts.items() if part.outcome == "wrong"]


def sweep(names: list[str], jobs: int = 1, seconds: int = 120) -> list[Record]:
    """The records of some architectures, in their order; what is wrong is printed as it is found."""
    torch.set_num_threads(1)
    _import_all()
    with tempfile.TemporaryDirectory(prefix="architectures-") as directory:
        root = Path(directory)
        (root / "shared").mkdir()
        if status := os.waitpid(_fork(lambda: prepare(root / "shared"), root / "prepare.log", seconds), 0)[1]:
            raise SystemExit(f"the shared cache can't be made (status {status}):\n{(root / 'prepare.log').read_text()}")
        running: dict[int, str] = {}
        found: dict[str, Record] = {}
        waiting = list(names)
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[_start(name, root, seconds)] = name
            pid, status = os.wait()
            name = running.pop(pid)
            found[name] = _collect(name, root, status)
            _print(found[name])
    return [found[name] for name in names]


def _start(name: str, root: Path, seconds: int) -> int:
    work = _place(root, name)
    work.mkdir()

    def run() -> None:
        record = check(name, work, root / "shared")
        (work / "record.json").write_text(json.dumps(record.as_dict()), encoding="utf-8")

    return _fork(run, work / "log", seconds)


def _fork(run: Callable[[], None], log: Path, seconds: int) -> int:
    """Run a function in a child with limits of time and memory, its output in a file; gives the child's id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.alarm(seconds)
        run()
        status = 0
    except BaseException:  # noqa: BLE001  # the child ends here; the parent reads what it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _collect(name: str, root: Path, status: int) -> Record:
    """A finished child's record; one of a crash where it left none."""
    work = _place(root, name)
    try:
        fields = json.loads((work / "record.json").read_text(encoding="utf-8"))
        record = Record.from_dict(fields)
    except (OSError, ValueError):
        log = (work / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        how = f"the process ended with {os.waitstatus_to_exitcode(status)}"  # below zero: by that signal
        record = Record(name, dump=Part("wrong", f"{how}: {log[-1][:200]}"))
    shutil.rmtree(work, ignore_errors=True)
    return record


def _place(root: Path, name: str) -> Path:
    return root / "".join(letter if letter.isalnum() else "_" for letter in name)


def _print(record: Record) -> None:
    print(f"{record.name}: {outcome(record)}, {record.seconds:.1f} s", *wrong(record), sep="\n    ", flush=True)


def _import_all() -> None:
    """What every child needs, once: transformers takes seconds to import, a fork takes milliseconds."""
    import peft  # noqa: F401
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama
    import transformers.models.llava.modeling_llava
    import transformers.models.mamba2.modeling_mamba2
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import logitcache.dump
    import logitcache.evaluate.measure
    import logitcache.train.trainer  # noqa: F401

    get_checkpoint_conversion_mapping("llama")  # type: ignore[no-untyped-call]  # made once, for all
    gc.freeze()  # so that children needn't look through what has been imported


if __name__ == "__main__":
    started = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - started:.0f} s")
    sys.exit(code)
