"""What do networks cost as firmware for a Cortex-M4F, dense and compressed, and are they right?

Networks: the built-in digits network, and the four float networks of MLPerf Tiny where their files
are at hand (``TVM_COMPRESS_SHARED`` names the folder). Dense firmware is judged by onnxruntime
without graph optimisation, compressed firmware by the reference target. Weights are pruned and
shared in one shot: this is about bytes and instructions, not about accuracy.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress.tensors import input_specs

BOARD = "cortex-m4"
RECIPES: dict[str, tc.Recipe | None] = {
    "dense": None,
    "4 bits": tc.Recipe([{"step": "share-weights", "bits": 4}]),
    "80 %, 4 bits": tc.recipes.deep_compression(0.8, 4, epochs=0),
    "90 %, 4 bits": tc.recipes.deep_compression(0.9, 4, epochs=0),
}
# Largest difference allowed, of the largest output. ad01 is ill-conditioned.
TOLERANCE = {"ad01_float": 1e-3}
TIMED = "vww_96_float"


def networks() -> dict[str, Path]:
    """Give the files that are here."""
    shared = Path(os.environ.get("TVM_COMPRESS_SHARED", ROOT.parent / "shared" / "data"))
    found = {"digits_cnn": ROOT / "examples" / "digits" / "digits_cnn.onnx"}
    for name in ("kws_dscnn_float", "vww_96_float", "ic_resnet8_float", "ad01_float"):
        path = shared / "mlperf_tiny" / f"{name}.onnx"
        if path.is_file():
            found[name] = path
        else:
            print(f"{path} is not here; its rows are left out.", file=sys.stderr)
    return found


def oracle(path: Path, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Run the ONNX file by onnxruntime without graph optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    names = [value.name for value in session.get_inputs()]
    result: NDArray[Any] = session.run(None, dict(zip(names, inputs.values(), strict=True)))[0]
    return result


def measure(name: str, path: Path, kind: str, recipe: tc.Recipe | None) -> dict[str, Any]:
    """Build one firmware and measure it."""
    start = time.perf_counter()
    mod = tc.load(path)
    if recipe is not None:
        mod = tc.compress(mod, recipe, progress=False)
    firmware = tc.build(mod, target="c", board=BOARD, name=name)
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(0)
    scale = 255.0 if name.startswith("ic_") else 1.0
    inputs = {
        spec.name: (rng.random(spec.shape) * scale).astype(np.float32) for spec in input_specs(mod)
    }
    (got,) = firmware.run(inputs).values()
    if recipe is None:
        expected = oracle(path, inputs)
    else:
        (expected,) = tc.build(mod, target="reference").run(inputs).values()
    return {
        "network": name,
        "kind": kind,
        "flash": firmware.size.flash_bytes,
        **firmware.size.flash,
        "ram": firmware.size.ram_bytes,
        "instructions": firmware.profile(inputs).instructions,
        "difference": float(np.abs(got - expected).max() / np.abs(expected).max()),
        "seconds": seconds,
    }


def main() -> int:
    """Measure all networks in all forms."""
    options = option_parser("firmware", __doc__ or "").parse_args()
    results = [
        measure(name, path, kind, recipe)
        for name, path in networks().items()
        for kind, recipe in RECIPES.items()
    ]
    header = ["network", "weights", "flash", "of it weights", "code", "RAM", "instructions"]
    rows = [
        [
            r["network"],
            r["kind"],
            *(f"{r[key]:,}" for key in ("flash", "weights", "code", "ram", "instructions")),
        ]
        for r in results
    ]
    figures = [
        Figure(
            f"difference of {r['network']}, {r['kind']}",
            r["difference"],
            TOLERANCE.get(r["network"], 1e-4),
            "of the largest output",
        )
        for r in results
    ]
    figures += [
        Figure(f"load, compress and build of {TIMED}, {r['kind']}", r["seconds"], 20, "s")
        for r in results
        if r["network"] == TIMED
    ]
    packages = ("tvm-compress", "apache-tvm", "numpy", "onnxruntime", "ziglang", "unicorn")
    report = Report("firmware", markdown_table(header, rows), figures, results, 0, packages)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
