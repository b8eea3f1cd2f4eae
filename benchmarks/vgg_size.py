"""How long and with how much memory is a network of VGG-16's size compressed and read again?

VGG-16 for ImageNet has 138 million weights. Shapes, densities and bits of the codes are those of
Deep Compression (arXiv 1510.00149, table 5); the weights are random, for neither time nor memory
depends on what they mean. Every file is written by a process of its own and
read by another, on two cores, so that the peak of the resident set is its own: the interpreter with
TVM, the network, and all that the steps need.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress import ir
from tvm_compress.passes import Prune, ShareWeights

__all__ = ["LAYERS", "digest", "main", "network", "read", "write"]

NAME = "vgg_size"
SEED = 0
CORES = 2
MINUTES_LIMIT = 10.0
PEAK_LIMIT_GB = 4.0


@dataclass(frozen=True)
class Layer:
    """A layer of VGG-16: outputs, the share of its weights that stays, and the bits of a code."""

    name: str
    outputs: int
    density: float
    bits: int


LAYERS = (
    Layer("conv1_1", 64, 0.58, 8),
    Layer("conv1_2", 64, 0.22, 8),
    Layer("conv2_1", 128, 0.34, 8),
    Layer("conv2_2", 128, 0.36, 8),
    Layer("conv3_1", 256, 0.53, 8),
    Layer("conv3_2", 256, 0.24, 8),
    Layer("conv3_3", 256, 0.42, 8),
    Layer("conv4_1", 512, 0.32, 8),
    Layer("conv4_2", 512, 0.27, 8),
    Layer("conv4_3", 512, 0.34, 8),
    Layer("conv5_1", 512, 0.35, 8),
    Layer("conv5_2", 512, 0.29, 8),
    Layer("conv5_3", 512, 0.36, 8),
    Layer("fc6", 4096, 0.04, 5),
    Layer("fc7", 4096, 0.04, 5),
    Layer("fc8", 1000, 0.23, 5),
)
_BEHIND_POOLING = {"conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc6"}


def _weights(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Any:
    """Make weights with the tails of a trained layer's: Laplace's distribution."""
    values: NDArray[np.float32] = np.empty(shape, np.float32)
    flat = values.reshape(-1)
    # In pieces: what makes the weights must not set the peak that is measured.
    for start in range(0, flat.size, 1 << 18):
        piece = flat[start : start + (1 << 18)]
        piece[:] = generator.laplace(0.0, fan_in**-0.5, piece.size)
    return relax.const(values)


def network(width: float = 1.0, image: int = 224) -> tvm.IRModule:
    """Make the network: input (1, 3, image, image), the outputs of every layer times ``width``.

    The weights are ``conv1_1_weight`` to ``fc8_weight``. Biases are random too.
    """
    generator = np.random.default_rng(SEED)
    builder = relax.BlockBuilder()
    data = relax.Var("data", relax.TensorType((1, 3, image, image), "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            x: Any = data
            for layer in LAYERS:
                if layer.name in _BEHIND_POOLING:
                    x = builder.emit(relax.op.nn.max_pool2d(x, (2, 2), (2, 2)))
                outputs = max(1, round(layer.outputs * width))
                dense = not layer.name.startswith("conv")
                if dense:
                    x = builder.emit(relax.op.reshape(x, (1, -1)))
                inputs = int(x.ty.shape[1])
                shape = (inputs, outputs) if dense else (outputs, inputs, 3, 3)
                fan_in = inputs if dense else 9 * inputs
                weight = builder.emit(_weights(generator, shape, fan_in), f"{layer.name}_weight")
                sums = (
                    relax.op.matmul(x, weight)
                    if dense
                    else relax.op.nn.conv2d(x, weight, padding=(1, 1))
                )
                x = builder.emit(sums, layer.name)
                around = (outputs,) if dense else (1, outputs, 1, 1)
                bias = builder.emit(_weights(generator, around, fan_in), f"{layer.name}_bias")
                x = builder.emit(relax.op.add(x, bias))
                if layer is not LAYERS[-1]:
                    x = builder.emit(relax.op.nn.relu(x))
            result = builder.emit_output(x, "logits")
        builder.emit_func_output(result)
    return tc.load(builder.finalize())


def digest(mod: tvm.IRModule) -> str:
    """Give a digest of all parameters: names, codes and centroids, or values."""
    found = hashlib.sha256()
    for name, parameter in sorted(ir.parameters(mod).items()):
        for array in (parameter.codes, parameter.centroids, parameter.dense):
            if array is not None:
                found.update(f"{name} {array.dtype.str} {array.shape}".encode())
                found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _save(mod: tvm.IRModule, path: Path, profile: str) -> None:
    if path.suffix == ".onnx":
        tc.export_onnx(mod, path)
    else:
        tc.save(mod, path, profile=profile)


FILES = {
    "archive.tcz": "archive",
    "flash.tcz": "flash",
    "shared.json": "archive",
    "shared.onnx": "archive",
}


def _timed(seconds: dict[str, float], name: str, step: Callable[[], Any]) -> Any:
    start, start_cpu = time.perf_counter(), time.process_time()
    result = step()
    seconds[name] = time.perf_counter() - start
    # Of a machine that is busy with other work this tells more.
    seconds[f"{name}_cpu"] = time.process_time() - start_cpu
    return result


def _peak_bytes() -> int:
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def write(path: Path, width: float, image: int) -> dict[str, Any]:
    """Make, prune, share and save the network in this process, and measure it.

    Args:
        path: the file; its name is one of ``FILES``.
        width: of the network.
        image: of the network.

    Returns:
        Seconds by step, the peak of the resident set, and what the file holds.
    """
    mod = network(width, image)
    weights = sum(weight.parameter.value.size for weight in ir.weights(mod).values())
    prune = Prune(layers={f"{layer.name}_weight": 1 - layer.density for layer in LAYERS})
    share = ShareWeights(layers={f"{layer.name}_weight": layer.bits for layer in LAYERS})
    seconds: dict[str, float] = {}
    mod = _timed(seconds, "prune", lambda: prune.apply(mod))
    mod = _timed(seconds, "share", lambda: share.apply(mod))
    _timed(seconds, "save", lambda: _save(mod, path, FILES[path.name]))
    peak = _peak_bytes()
    codes = (weight.parameter.codes for weight in ir.weights(mod).values())
    return {
        "weights": weights,
        "kept": sum(int(np.count_nonzero(c)) for c in codes if c is not None),
        "seconds": seconds,
        "peak_rss_bytes": peak,
        "file_bytes": path.stat().st_size,
        "digest": digest(mod),
    }


def read(path: Path) -> dict[str, Any]:
    """Load a file in this process, and measure it."""
    seconds: dict[str, float] = {}
    mod = _timed(seconds, "load", lambda: tc.load(path))
    peak = _peak_bytes()
    return {"seconds": seconds, "peak_rss_bytes": peak, "digest": digest(mod)}


def _apart(*arguments: str) -> dict[str, Any]:
    """Run this file with other arguments on two cores, and give what it prints."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(CORES)}

    def two_cores() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])

    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment, preexec_fn=two_cores
    )
    return dict(json.loads(done.stdout))


def main(arguments: list[str] | None = None) -> int:
    """Write and read every file, or with ``--write`` or ``--read`` one of them here."""
    parser = option_parser(NAME, "Time and memory of compressing a network of VGG-16's size.")
    parser.add_argument("--width", type=float, default=1.0, help="factor of all layers' outputs")
    parser.add_argument("--image", type=int, default=224, help="rows and columns of the input")
    parser.add_argument("--write", type=Path, metavar="FILE", help="measure writing one file")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure reading one file")
    options = parser.parse_args(arguments)
    if options.write:
        print(json.dumps(write(options.write, options.width, options.image)))
        return 0
    if options.read:
        print(json.dumps(read(options.read)))
        return 0

    results, rows, figures = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            path = Path(folder) / name
            size = ["--width", str(options.width), "--image", str(options.image)]
            written = _apart("--write", str(path), *size)
            again = _apart("--read", str(path))
            path.unlink()
            equal = written["digest"] == again["digest"]
            results.append({"file": name, "written": written, "read": again, "equal": equal})
            seconds = written["seconds"]
            peaks = [part["peak_rss_bytes"] / 1e9 for part in (written, again)]
            rows.append(
                [
                    name,
                    f"{written['file_bytes']:,}",
                    *(f"{seconds[step]:.1f}" for step in ("prune", "share", "save")),
                    f"{peaks[0]:.2f}",
                    f"{again['seconds']['load']:.1f}",
                    f"{peaks[1]:.2f}",
                    "yes" if equal else "NO",
                ]
            )
            minutes = sum(seconds[step] for step in ("prune", "share", "save")) / 60
            figures += [
                Figure(f"time to prune, share and save {name}", minutes, MINUTES_LIMIT, "minutes"),
                Figure(f"peak RSS of writing {name}", peaks[0], PEAK_LIMIT_GB, "GB"),
                Figure(f"peak RSS of reading {name}", peaks[1], PEAK_LIMIT_GB, "GB"),
                Figure(f"parameters of {name} that differ when read", not equal, 0, "sets"),
            ]
    first = results[0]["written"]
    header = [
        f"{first['weights']:,} weights, {first['kept']:,} kept",
        "bytes",
        "prune, s",
        "share, s",
        "save, s",
        "peak RSS, GB",
        "load, s",
        "its peak, GB",
        "equal",
    ]
    packages = ("tvm-compress", "apache-tvm", "constriction", "onnx", "numpy")
    report = Report(NAME, markdown_table(header, rows), figures, results, SEED, packages)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
