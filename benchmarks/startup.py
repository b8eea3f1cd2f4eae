"""What does it cost to start: the command line's help, and the import of the package beside TVM's?

Every run is a process of its own. The help is timed from outside, as its user waits for it. The
import is timed inside the process: ``import tvm`` first, then all that ``tvm_compress`` offers,
which registers the operators and imports the passes, the frontends, the recipes and the targets.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser

NAME = "startup"
HELP_LIMIT_S = 0.5
IMPORT_LIMIT_S = 0.3
RUNS = 7

_IMPORTS = """
import json, time
start = time.perf_counter()
import tvm
middle = time.perf_counter()
import tvm_compress
tvm.ir.Op.get("tvm_compress.codebook")
registered = time.perf_counter()
for name in tvm_compress.__all__:
    getattr(tvm_compress, name)
print(json.dumps([middle - start, registered - middle, time.perf_counter() - middle]))
"""


def _run(*arguments: str) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return done.stdout


def help_seconds() -> float:
    """Time ``tvm-compress --help`` once, the start of Python included."""
    start = time.perf_counter()
    _run("-m", "tvm_compress", "--help")
    return time.perf_counter() - start


def import_seconds() -> tuple[float, float, float]:
    """Time once ``import tvm``, then ``import tvm_compress``, then that and all that it offers."""
    tvm, registered, everything = json.loads(_run("-c", _IMPORTS))
    return tvm, registered, everything


def main(arguments: list[str] | None = None) -> int:
    """Measure medians over several processes and give the exit code."""
    parser = option_parser(NAME, "Time to start the command line and to import the package.")
    parser.add_argument("--runs", type=int, default=RUNS, help="processes for each figure")
    options = parser.parse_args(arguments)
    # The first run of each reads the files into memory and is left out.
    helps = [help_seconds() for _ in range(options.runs + 1)][1:]
    imports = [import_seconds() for _ in range(options.runs + 1)][1:]
    tvm, registered, everything = (
        statistics.median(column) for column in zip(*imports, strict=True)
    )
    rows = [
        ("tvm-compress --help", statistics.median(helps)),
        ("import tvm", tvm),
        ("import tvm_compress after it", registered),
        ("the same and all that it offers", everything),
    ]
    table = markdown_table(
        [f"median of {options.runs} processes", "time, s"],
        [[what, f"{seconds:.2f}"] for what, seconds in rows],
    )
    figures = [
        Figure("time of tvm-compress --help", rows[0][1], HELP_LIMIT_S, "s"),
        Figure("time of import tvm_compress over import tvm", everything, IMPORT_LIMIT_S, "s"),
    ]
    results = {"help_seconds": helps, "import_seconds": imports}
    packages = ("tvm-compress", "apache-tvm", "typer", "rich", "pydantic", "onnx", "torch")
    return finish(Report(NAME, table, figures, results, 0, packages), options)


if __name__ == "__main__":
    raise SystemExit(main())
