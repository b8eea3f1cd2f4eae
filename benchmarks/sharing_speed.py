"""How long and with how much memory are 61 million weights shared into 16 centroids?

61 million float32 weights are AlexNet's number, here in one tensor with heavy tails, dense and
with 90 % zeros. Each case runs in a process of its own, so that the peak of its resident set is
its own: the interpreter, the weights (244 MB), the codes (61 MB) and all that sharing needs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress.clustering import METHODS, Method, share, squared_error

NAME = "sharing_speed"
SIZE = 61_000_000
BITS = 4
SEED = 0
SECONDS_LIMIT = 15.0
PEAK_LIMIT_GB = 2.0
SPARSITIES = (0.0, 0.9)


def weights(size: int, sparsity: float) -> NDArray[np.float32]:
    """Make weights like a trained layer's: a bell with the tails of Student's t, 4 degrees."""
    generator = np.random.default_rng(SEED)
    tensor = np.empty(size, np.float32)
    # In pieces: what makes the tensor must not set the peak that is measured.
    for start in range(0, size, 1 << 18):
        piece = tensor[start : start + (1 << 18)]
        piece[:] = 0.02 * generator.standard_t(4, piece.size)
        if sparsity:
            piece[generator.random(piece.size) < sparsity] = 0.0
    return tensor


def measure(size: int, sparsity: float, method: Method) -> dict[str, Any]:
    """Share once in this process and give seconds, peak resident set in bytes and the error."""
    tensor = weights(size, sparsity)
    start = time.perf_counter()
    codes, centroids = share(tensor, BITS, method=method, seed=SEED)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = squared_error(tensor, codes, centroids)
    nonzero = int(np.count_nonzero(tensor))
    return {
        "method": method,
        "sparsity": sparsity,
        "size": size,
        "seconds": seconds,
        # Linux counts in KiB, macOS in bytes.
        "peak_rss_bytes": peak * (1 if sys.platform == "darwin" else 1024),
        "mean_squared_error_of_nonzeros": error / max(nonzero, 1),
    }


def _measure_apart(size: int, sparsity: float, method: Method) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(sparsity), method, "--size", str(size)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    return dict(json.loads(done.stdout))


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases, or with ``--measure`` one case here, and give the exit code."""
    parser = option_parser(NAME, "Time and memory of sharing a large tensor.")
    parser.add_argument("--size", type=int, default=SIZE, help="number of weights")
    parser.add_argument(
        "--measure",
        nargs=2,
        metavar=("SPARSITY", "METHOD"),
        help="measure one case in this process and print it as JSON",
    )
    options = parser.parse_args(arguments)
    if options.measure:
        sparsity, method = float(options.measure[0]), options.measure[1]
        print(json.dumps(measure(options.size, sparsity, method)))
        return 0

    results = [
        _measure_apart(options.size, sparsity, method)
        for sparsity in SPARSITIES
        for method in METHODS
    ]
    figures = []
    rows = []
    for result in results:
        case = f"{result['method']}, {100 * result['sparsity']:.0f} % zeros"
        gigabytes = result["peak_rss_bytes"] / 1e9
        rows.append(
            [
                case,
                f"{result['seconds']:.1f}",
                f"{gigabytes:.2f}",
                f"{result['mean_squared_error_of_nonzeros']:.3e}",
            ]
        )
        figures.append(Figure(f"time of {case}", result["seconds"], SECONDS_LIMIT, "s"))
        figures.append(Figure(f"peak RSS of {case}", gigabytes, PEAK_LIMIT_GB, "GB"))
    millions = options.size / 1e6
    header = [
        f"{millions:g} million weights, {2**BITS} centroids",
        "time, s",
        "peak RSS, GB",
        "mean squared error of the non-zeros",
    ]
    report = Report(NAME, markdown_table(header, rows), figures, results, SEED)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
