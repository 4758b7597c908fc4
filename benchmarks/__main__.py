"""Run every benchmark, one after the other: `make bench`, or `python -m benchmarks NAME...` for some of them.

`before_after` is left out, which needs a revision to compare with, and `gpu`, which `make bench-gpu` runs.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import benchmarks


def main() -> int:
    names = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    known = sorted(name for name in names if name[0] != "_" and name not in ("before_after", "gpu"))
    wanted = sys.argv[1:] or known
    if unknown := sorted(set(wanted) - set(known)):
        print(f"no benchmark called {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted:
        print(f"\n=== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
