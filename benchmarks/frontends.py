"""Which networks of the development data load, and how near their numbers are to the originals'.

Each model file is loaded and run by the reference target on random inputs (one for a float network,
five for a quantised one); the judge is onnxruntime (graph optimisation disabled) or LiteRT (its
reference kernels). A float network is held to 1e-5 of its largest output (ad01, which is
ill-conditioned, to 1e-3). A quantised one runs in its integer form and is held to every byte.

The judges and the drawing of inputs are used by the tests too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT, Figure, Report, finish, markdown_table, option_parser
from tvm_compress.errors import InputError
from tvm_compress.frontends import load
from tvm_compress.passes import ToIntegers
from tvm_compress.targets import reference
from tvm_compress.tensors import TensorSpec, input_specs

NAME = "frontends"
SEED = 0

Arrays = dict[str, NDArray[Any]]

# Limits that are not the rule: a share of the largest output.
LIMITS = {
    "ad01_float.onnx": 1e-3,
    "ad01_float.tflite": 1e-3,
}
QUANTISED_INPUTS = 5


@dataclass(frozen=True)
class Outcome:
    """What became of one model file.

    Attributes:
        file: path within the data folder.
        refused: the sentence of the frontend that refused it, else empty.
        difference: largest difference of any output for any input, as a share of the largest
            output (floats) or in steps (integers).
        unit: ``of the largest output`` or ``steps``.
        limit: what the difference is held to.
    """

    file: str
    refused: str
    difference: float = 0.0
    unit: str = ""
    limit: float = 0.0


def draw_inputs(specs: Sequence[TensorSpec], seed: int = SEED) -> Arrays:
    """Draw inputs by name: floats from the standard normal distribution, integers of all values."""
    rng = np.random.default_rng(seed)
    drawn: Arrays = {}
    for spec in specs:
        if np.dtype(spec.dtype).kind == "f":
            drawn[spec.name] = rng.standard_normal(spec.shape).astype(spec.dtype)
        else:
            info = np.iinfo(spec.dtype)
            drawn[spec.name] = rng.integers(
                info.min, info.max, spec.shape, dtype=spec.dtype, endpoint=True
            )
    return drawn


def judge_onnx(model: str | bytes, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run an ONNX file or its bytes by onnxruntime as the graph is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [np.asarray(y) for y in session.run(None, dict(zip(names, inputs, strict=True)))]


def judge_tflite(path: Path, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run a TensorFlow Lite file by LiteRT's reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1
    )
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def measure(path: Path, folder: Path) -> Outcome:
    """Load one file and compare it with its judge."""
    file = str(path.relative_to(folder))
    try:
        mod = ToIntegers()(load(path))
    except InputError as error:
        return Outcome(file, str(error).replace(f"{path.parent}{os.sep}", ""))
    specs = input_specs(mod)
    floats = all(np.dtype(spec.dtype).kind == "f" for spec in specs)
    difference, unit = 0.0, ""
    for seed in range(SEED, SEED + (1 if floats else QUANTISED_INPUTS)):
        inputs = draw_inputs(specs, seed)
        ordered = list(inputs.values())
        if path.suffix == ".onnx":
            expected = judge_onnx(str(path), ordered)
        else:
            expected = judge_tflite(path, ordered)
        one, unit = compare(reference.run(mod, inputs), expected)
        difference = max(difference, one)
    limit = LIMITS.get(path.name, 1e-5 if unit == "of the largest output" else 0)
    return Outcome(file, "", difference, unit, limit)


def compare(
    given: Mapping[str, NDArray[Any]], expected: Sequence[NDArray[Any]]
) -> tuple[float, str]:
    """Give the largest difference of all outputs and its unit.

    Raises:
        ValueError: number, shape or dtype of the outputs is not that of the judge.
    """
    worst = 0.0
    for (name, y), wanted in zip(given.items(), expected, strict=True):
        if (y.shape, y.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"The output {name} is {y.dtype} {y.shape}; the judge gives {wanted.dtype} "
                f"{wanted.shape}: mend the frontend."
            )
        a, b = y.astype(np.float64), wanted.astype(np.float64)
        scale = float(np.abs(b).max()) if y.dtype.kind == "f" else 1.0
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(f"The output {name} is not finite: choose other inputs.")
        worst = max(worst, float(np.abs(a - b).max()) / (scale or 1.0))
    floats = all(y.dtype.kind == "f" for y in given.values())
    return worst, "of the largest output" if floats else "steps"


def model_files(folder: Path) -> list[Path]:
    """Give all model files of the development data."""
    return sorted(path for ext in ("onnx", "tflite") for path in folder.rglob(f"*.{ext}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every model, print the table, check the limits."""
    parser = option_parser(NAME, (__doc__ or "").split("\n", 1)[0])
    default = os.environ.get("TVM_COMPRESS_SHARED", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="the development data")
    options = parser.parse_args(arguments)
    files = model_files(options.data)
    if not files:
        parser.exit(
            2,
            f"There are no models in {options.data}; set TVM_COMPRESS_SHARED to the folder of the "
            "development data, or leave this benchmark out.\n",
        )
    outcomes = [measure(path, options.data) for path in files]
    rows = []
    for outcome in outcomes:
        if outcome.refused:
            rows.append([outcome.file, f"not taken: {outcome.refused}", "", ""])
        else:
            rows.append(
                [
                    outcome.file,
                    "loaded",
                    f"{outcome.difference:.2g} {outcome.unit}",
                    f"{outcome.limit:g}",
                ]
            )
    table = markdown_table(["model", "result", "largest difference", "held to"], rows)
    figures = [
        Figure(f"difference of {o.file}", o.difference, o.limit, o.unit)
        for o in outcomes
        if not o.refused
    ]
    report = Report(
        NAME,
        table,
        figures,
        [asdict(outcome) for outcome in outcomes],
        SEED,
        ("tvm-compress", "apache-tvm", "numpy", "onnxruntime", "ai-edge-litert"),
    )
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
