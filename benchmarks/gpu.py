"""What a person with GPUs can measure and send in: `make bench-gpu`, or

    python -m benchmarks.gpu --out results-gpu

Models of known shapes with random weights, as large as the machine's memory allows: a dump beside the bare forward
pass, the head beside linear + cross-entropy, a training step beside fine-tuning and online distillation, and the
loader. The results are written as gpu.json and gpu.md. `--tiny` runs the same code on a CPU in seconds; its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks._device import why_no_gpu
from benchmarks._gpu_machines import MACHINES, TINY, Machine, machine_for
from benchmarks._gpu_parts import dump_rows, head_rows, loader_rows, release, step_rows
from benchmarks._markdown import table, write_tables

_GIB = 1 << 30


def environment() -> dict[str, Any]:
    """The machine and the versions, without any name of its own."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def measure(machine: Machine, devices: list[torch.device], rounds: int) -> dict[str, Any]:
    """Every part, one after the other; each frees its memory."""
    results: dict[str, Any] = {"machine": machine.name, **environment()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        print("dump", file=sys.stderr)
        results["dump"], cache = dump_rows(machine, place, devices, "bf16", rounds)
        release()
        print("loader", file=sys.stderr)
        results["loader"] = loader_rows(cache)
        print("head", file=sys.stderr)
        results["head"] = head_rows(machine, devices[0], rounds)
        release()
        print("step", file=sys.stderr)
        results["step"] = step_rows(machine, place, devices[0], rounds)
        release()
    return results


def tables(results: dict[str, Any]) -> list[str]:
    """The results in words and tables."""
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / _GIB:.0f} GiB)" for gpu in results["gpus"]) or "no GPU"
    versions = f"torch {results['torch']}, CUDA {results['cuda']}, transformers {results['transformers']}"
    dump = results["dump"]
    peaks = " / ".join(f"{dump['peak_bytes'][way] / _GIB:.2f}" for way in ("bare", "dump"))
    return [
        f"# {results['machine']}: {gpus}",
        f"{versions}, Python {results['python']}. Shapes of known models with random weights.",
        table(
            ["dump", "tokens", "tokens/s", "time of the bare pass", "peak GiB, bare / dump"],
            [[f"{dump['parameters'] / 1e9:.2f} B, {dump['dtype']}, {dump['devices']} device(s)", f"{dump['tokens']:,}",
              f"{dump['dump_tokens_per_second']:,.0f}", f"{dump['time_ratio']:.3f}x", peaks]],
        ),
        table(
            ["loader", "tokens/s", "tokens/s and core"],
            [[way, f"{row['tokens_per_second']:,}", f"{row['tokens_per_core_second']:,}"]
             for way, row in results["loader"].items()],
        ),
        table(
            ["head, bf16", "width", "vocabulary", "tokens", "ms", "time", "extra GiB"],
            [[row["loss"], f"{row['width']:,}", f"{row['vocabulary']:,}", f"{row['tokens']:,}",
              f"{1000 * row['seconds']:.2f}", f"{row['time_ratio']:.2f}x", f"{row['extra_bytes'] / _GIB:.2f}"]
             for row in results["head"]],
        ),
        table(
            ["step, bf16 autocast", "tokens", "ms", "from a cache takes", "peak GiB"],
            [[row["way"], f"{row['tokens']:,}", f"{1000 * row['seconds']:.1f}", f"{row['ours_takes']:.2f}x",
              f"{row['peak_bytes_without_optimizer'] / _GIB:.2f}"] for row in results["step"]],
        ),
    ]  # fmt: skip


def choose(options: argparse.Namespace) -> tuple[Machine, list[torch.device]] | str:
    """What to measure and where; or one line on why nothing can be."""
    if options.tiny:
        return TINY, [torch.device("cpu")]
    if why := why_no_gpu():
        return why
    count = torch.cuda.device_count()
    free = min(torch.cuda.mem_get_info(index)[0] for index in range(count))
    machine = machine_for(free, count)
    if machine is None:
        return (
            f"{free / _GIB:.1f} GiB are free on the GPU, and the smallest shapes need {MACHINES[0].memory / _GIB:.0f}"
        )
    return machine, [torch.device("cuda", index) for index in range(machine.devices)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results-gpu"), help="directory for gpu.json and gpu.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU")
    options = parser.parse_args()
    chosen = choose(options)
    if isinstance(chosen, str):
        print(chosen, file=sys.stderr)
        return 1
    results = measure(*chosen, 1 if options.tiny else options.rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_tables(options.out / "gpu.md", tables(results))
    print(f"{options.out / 'gpu.json'} and {options.out / 'gpu.md'} hold the results: please send them in")
    return 0


if __name__ == "__main__":
    sys.exit(main())
