"""The hand-written models that stand in for the code generator, and what tests do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tvm_compress.targets.mcu.boards import Board, get_board
from tvm_compress.targets.mcu.firmware import Layer, ModelSources, TensorSpec

DATA = Path(__file__).parent / "data"
RUNTIME = Path(__file__).parents[3] / "targets" / "mcu" / "runtime"

# conftest.py skips what is marked where the tool is missing, and fails it in CI.
TOOLCHAINS = ["zig", pytest.param("gnu", marks=pytest.mark.gnu)]
ENGINES = ["unicorn", pytest.param("qemu", marks=pytest.mark.qemu)]


def _files(*names: str) -> dict[str, str]:
    return {name: (DATA / name).read_text(encoding="utf-8") for name in names}


def tiny() -> ModelSources:
    """A dense layer of 32 x 3 and a softmax."""
    return ModelSources(
        "tiny",
        _files("tiny.c", "tiny.h", "tiny_layers.c"),
        (TensorSpec("x", (32,), "float32"),),
        (TensorSpec("y", (3,), "float32"),),
        48,
        (
            Layer("tiny_layer_000_dense", "fc", "dense", ("tiny_w_dense",)),
            Layer("tiny_layer_001_softmax", "prob", "softmax"),
        ),
    )


def tiny_expected(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the model ``tiny`` computes, in double precision; x is (N, 32), the result (N, 3)."""
    weights = np.arange(1, 4)[:, None] * 2.0 ** -(np.arange(32) % 8)
    logits = x.astype(np.float64) @ weights.T + np.array([0.1, -0.2, 0.3])
    exponentials = np.exp(logits)
    result: NDArray[np.float64] = exponentials / exponentials.sum(1, keepdims=True)
    return result


def tiny_input(count: int) -> NDArray[np.float32]:
    """Samples of shape (count, 32), always the same."""
    return np.random.default_rng(3).normal(size=(count, 32)).astype(np.float32)


def trouble(scratch_bytes: int = 64) -> ModelSources:
    """A model that faults, hangs or fails as its input says; see data/trouble.c."""
    files = _files("trouble.c", "trouble.h", "trouble_layers.c")
    files["scratch.h"] = f"#define SCRATCH_BYTES {scratch_bytes}\n"
    return ModelSources(
        "trouble",
        files,
        (TensorSpec("request", (1,), "float32"),),
        (TensorSpec("echo", (1,), "float32"),),
        0,
        (
            Layer("trouble_layer_000_act", "act", "act"),
            Layer("trouble_layer_001_scratch", "scratch", "scratch"),
        ),
    )


def heavy() -> ModelSources:
    """Four layers with 1000, 4000, 2000 and 3000 bytes of weights, and an arena of 20000."""
    return ModelSources(
        "heavy",
        _files("heavy.c", "heavy.h", "heavy_layers.c"),
        (TensorSpec("x", (1,), "uint8"),),
        (TensorSpec("y", (1,), "uint8"),),
        20000,
        tuple(
            Layer(f"heavy_layer_00{i}", f"layer{i}", "table", (f"heavy_w_00{i}",)) for i in range(4)
        ),
    )


def mixed() -> ModelSources:
    """Inputs (2, 3) float32 and (5,) int8; outputs () int32 and (2, 3) float32."""
    return ModelSources(
        "mixed",
        _files("mixed.c", "mixed.h", "mixed_layers.c"),
        (TensorSpec("values", (2, 3), "float32"), TensorSpec("bytes", (5,), "int8")),
        (TensorSpec("total", (), "int32"), TensorSpec("scaled", (2, 3), "float32")),
        0,
        (Layer("mixed_layer_000_all", "all", "all"),),
    )


def functions() -> ModelSources:
    """Eight functions of libm of the two inputs."""
    return ModelSources(
        "functions",
        _files("functions.c", "functions.h", "functions_layers.c"),
        (TensorSpec("x", (2,), "float32"),),
        (TensorSpec("y", (8,), "float32"),),
        0,
        (Layer("functions_layer_000_all", "all", "all"),),
    )


def board_with(**changes: Any) -> Board:
    """The board cortex-m4 with other values; regions as {"origin": .., "length": ..}."""
    return Board.model_validate(get_board("cortex-m4").model_dump() | changes)
