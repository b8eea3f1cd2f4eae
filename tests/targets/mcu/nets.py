"""Small networks, and C compiled and run on this machine, for the tests of the code generator."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge
from tvm_compress.ops import codebook
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.targets.mcu.emit import CFunction

Array = NDArray[Any]
Shape = tuple[int, ...]
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
PREAMBLE = "".join(f"#include <{header}.h>\n" for header in ("math", "stdbool", "stdint", "string"))
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off")
ZIG_CC = (sys.executable, "-m", "ziglang", "cc")


def need(command: str) -> str:
    """Give the command, or skip the test (in CI: fail it) where it is missing."""
    if shutil.which(command) is None:
        message = f"{command} was not found on PATH; this test compiles with it: install gcc."
        if IN_CI:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return command


def host_cc() -> tuple[str, ...]:
    """Give the quickest C compiler for this machine."""
    return ("cc",) if shutil.which("cc") else ZIG_CC


def execute(command: Sequence[Any], folder: Path | None = None) -> str:
    """Run a command that must succeed; give what it printed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- networks -------------------------------------------------------------------------------------


class Net:
    """What a network's description calls to add bindings: ``net(expr, name)``."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self.builder = builder

    def __call__(self, expr: Any, name: str = "") -> Any:
        return self.builder.emit(expr, name)


def network(
    inputs: Mapping[str, Shape | tuple[Shape, str]],
    describe: Callable[..., Any],
    *,
    outputs: Sequence[str] | None = None,
) -> tvm.IRModule:
    """Build a canonical module: ``describe(net, *inputs)`` gives its output or a list of them."""
    builder = relax.BlockBuilder()
    params = []
    for name, spec in inputs.items():
        shape, dtype = spec if spec and isinstance(spec[-1], str) else (spec, "float32")
        params.append(relax.Var(name, relax.TensorType(shape, dtype)))
    with builder.function("main", params):
        with builder.dataflow():
            result = describe(Net(builder), *params)
            many = isinstance(result, list)
            results = result if many else [result]
            names = outputs or [f"y{i}" if many else "y" for i in range(len(results))]
            given = [builder.emit_output(r, n) for r, n in zip(results, names, strict=True)]
        builder.emit_func_output(given if many else given[0])
    return Canonicalize()(builder.get())


def const(value: Any, dtype: str = "float32") -> Any:
    return edge.constant(np.asarray(value, dtype))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shared(shape: Shape, bits: int = 4, seed: int = 0, zeros: float = 0.5) -> Any:
    """A shared weight of ``2**bits`` centroids, the first of them 0.0."""
    chance = np.random.default_rng(seed)
    codes = chance.integers(0, 1 << bits, shape).astype(np.uint8)
    codes[chance.random(shape) < zeros] = 0
    centroids = chance.standard_normal(1 << bits).astype(np.float32)
    centroids[0] = 0
    return codebook(edge.constant(codes), edge.constant(centroids))


def stock_tvm(mod: tvm.IRModule, *inputs: Array) -> list[Array]:
    """Compile with TVM alone and run on this machine; the outputs in order."""
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
    results = [result] if hasattr(result, "numpy") else list(result)
    return [np.asarray(r.numpy()) for r in results]


def assert_close(actual: Array, expected: Array, tolerance: float = 1e-4) -> None:
    """Hold a result to a fraction of the largest expected magnitude."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = max(float(np.abs(expected.astype(np.float64)).max(initial=0)), 1e-30)
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    assert float(difference.max(initial=0)) <= tolerance * largest


# -- single functions -----------------------------------------------------------------------------

_LIBRARIES: dict[str, Any] = {}
_GUARD = 64


def load_c(text: str, symbol: str) -> Any:
    """Compile C text into a library and give a function that takes an array of pointers."""
    key = hashlib.sha256((text + symbol).encode()).hexdigest()
    if key not in _LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "f.c", Path(folder) / "f.so"
            source.write_text(text)
            execute([*host_cc(), *STRICT, "-O1", "-shared", "-fPIC", source, "-o", library, "-lm"])
            _LIBRARIES[key] = getattr(ctypes.CDLL(str(library)), symbol)
    return _LIBRARIES[key]


def call_c(
    function: CFunction, workspaces: Sequence[int], inputs: Sequence[Array], output: Array
) -> Array:
    """Call an emitted function; what it reads or writes out of bounds shows.

    Inputs of float32 lie between NaN, the output and the scratch memory between bytes that must
    stay; scratch and output hold NaN before.
    """
    count = len(function.parameters)
    casts = ", ".join(f"p[{i}]" for i in range(count))
    text = (
        PREAMBLE
        + function.definition("f")
        + f"void g(void **p);\nvoid g(void **p) {{ f({casts}); }}\n"
    )
    entry = load_c(text, "g")
    guard = np.full(_GUARD, 0xFF, np.uint8)
    # float32 of the bytes 0xFF is NaN.
    held = [np.concatenate([guard, np.frombuffer(x.tobytes(), np.uint8), guard]) for x in inputs]
    before = [array.copy() for array in held]
    sizes = [output.nbytes, *workspaces]
    written = [np.full(size + 2 * _GUARD, 0xFF, np.uint8) for size in sizes]
    assert count == len(held) + len(written)
    pointers = (ctypes.c_void_p * count)(*(a.ctypes.data + _GUARD for a in (*held, *written)))
    entry(pointers)
    for array, kept in zip(held, before, strict=True):
        assert (array == kept).all(), "an input was written"
    for array in written:
        assert (array[:_GUARD] == 0xFF).all(), "bytes in front of an array were written"
        assert (array[-_GUARD:] == 0xFF).all(), "bytes behind an array were written"
    result = written[0][_GUARD:-_GUARD].tobytes()
    return np.frombuffer(result, output.dtype).reshape(output.shape).copy()
