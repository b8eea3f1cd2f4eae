from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.targets.mcu.tools import DATA, ENGINES, RUNTIME, TOOLCHAINS, functions
from tvm_compress.targets.mcu.boards import EmulatorName, get_board
from tvm_compress.targets.mcu.firmware import link_firmware
from tvm_compress.targets.mcu.toolchain import ToolchainName, find_toolchain, host_library

Float = NDArray[np.float32]

SPECIAL = np.array(
    [0.0, 1.0, 2.0, 0.5, 3.0, 2.5, 1e-40, 3e38, 1e9, 8388609.0, 16777217.0, math.inf], np.float32
)
SPECIAL = np.concatenate([SPECIAL, -SPECIAL, np.array([math.nan], np.float32)])


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(host_library(DATA / "libm_batch.c", (RUNTIME / "libm.c",))))


def _call(library: ctypes.CDLL, name: str, *arguments: Float) -> Float:
    arrays = [np.ascontiguousarray(argument, np.float32) for argument in arguments]
    result = np.empty_like(arrays[0])
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*arrays, result)]
    getattr(library, f"batch_{name}")(*pointers, ctypes.c_size_t(result.size))
    return result


def _error_ulp(got: Float, exact: NDArray[np.float64]) -> float:
    """The largest distance in units of the last place of the exact value's float neighbours."""
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(got.astype(np.float64) - exact) / unit))


def _same(got: Float, expected: Float) -> bool:
    """Equal bits, but for the payload of a NaN."""
    number = ~np.isnan(expected)
    return bool(
        np.array_equal(np.isnan(got), ~number)
        and got[number].tobytes() == expected[number].tobytes()
    )


def test_expf(library: ctypes.CDLL) -> None:
    x = np.linspace(-103.9, 88.72, 400_001).astype(np.float32)
    assert _error_ulp(_call(library, "expf", x), np.exp(x.astype(np.float64))) < 1.1
    edges = np.array([88.73, -104.0, math.inf, -math.inf, math.nan, 0.0, -0.0], np.float32)
    expected = np.array([math.inf, 0.0, math.inf, 0.0, math.nan, 1.0, 1.0], np.float32)
    assert _same(_call(library, "expf", edges), expected)


@pytest.mark.parametrize(
    ("name", "exact", "limit"), [("tanhf", math.tanh, 1.5), ("erff", math.erf, 1.5)]
)
def test_sigmoids(library: ctypes.CDLL, name: str, exact: object, limit: float) -> None:
    assert callable(exact)
    x = np.concatenate([np.linspace(-10, 10, 200_001), np.logspace(-38, 0, 20_001)])
    x = x.astype(np.float32)
    expected = np.array([exact(value) for value in x.tolist()])
    assert _error_ulp(_call(library, name, x), expected) < limit
    edges = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -1e30], np.float32)
    limits = np.array([0.0, -0.0, 1.0, -1.0, math.nan, 1.0, -1.0], np.float32)
    assert _same(_call(library, name, edges), limits)


def test_powf(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(0)
    x = np.exp(random.uniform(-80, 80, 300_000)).astype(np.float32)
    y = random.uniform(-85, 85, x.size) / np.maximum(np.abs(np.log(x.astype(np.float64))), 0.1)
    near_one = random.uniform(0.5, 2, 100_000).astype(np.float32)
    large = random.uniform(-100, 100, 100_000).astype(np.float32)
    for base, exponent in ((x, y.astype(np.float32)), (near_one, large)):
        exact = base.astype(np.float64) ** exponent.astype(np.float64)
        assert _error_ulp(_call(library, "powf", base, exponent), exact) < 1.1


@pytest.mark.parametrize("swap", [False, True])
def test_powf_has_the_special_cases_of_the_c_standard(library: ctypes.CDLL, swap: bool) -> None:
    first, second = (grid.ravel() for grid in np.meshgrid(SPECIAL, SPECIAL))
    x, y = (second, first) if swap else (first, second)
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    got = _call(library, "powf", x, y)
    special = ~np.isfinite(expected) | (expected == 0) | (expected == 1)
    assert special.sum() > 300
    assert _same(got[special], expected[special])
    assert _error_ulp(got[~special], exact[~special]) < 1.1


@pytest.mark.parametrize("name", ["rintf", "nearbyintf"])
def test_rounding_is_to_the_nearest_ties_to_even(library: ctypes.CDLL, name: str) -> None:
    random = np.random.default_rng(1)
    x = np.concatenate(
        [random.uniform(-1e7, 1e7, 50_000), np.arange(-100, 100) / 2, SPECIAL]
    ).astype(np.float32)
    assert _same(_call(library, name, x), np.rint(x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TOOLCHAINS)
def test_board_and_host_agree_bit_for_bit(
    library: ctypes.CDLL, name: ToolchainName, engine: EmulatorName, tmp_path: Path
) -> None:
    firmware = link_firmware(functions(), get_board("cortex-m4"), tmp_path, find_toolchain(name))
    random = np.random.default_rng(2)
    x = np.stack([random.normal(size=400) * 4, np.abs(random.normal(size=400)) * 3], axis=1)
    x = np.concatenate([x, np.stack(np.meshgrid(SPECIAL, SPECIAL), -1).reshape(-1, 2)])
    x = x.astype(np.float32)
    first, second = x.T
    with np.errstate(all="ignore"):
        erf = _call(library, "erff", first)
        expected = [
            _call(library, "expf", first),
            _call(library, "tanhf", first),
            erf,
            _call(library, "powf", first, second),
            _call(library, "rintf", first),
            _call(library, "nearbyintf", second),
            first * second + erf,
            np.sqrt(second),
        ]
    got = firmware.run({"x": x}, engine)["y"]
    for index, column in enumerate(expected):
        assert _same(np.ascontiguousarray(got[:, index]), column), f"output {index}"
