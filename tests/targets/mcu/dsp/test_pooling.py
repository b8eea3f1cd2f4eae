"""Means and maxima of windows: byte by byte against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.dsp.layers import requantized
from tests.targets.mcu.dsp.machine import assemble, call
from tvm_compress.ops.requantize import quantize_multiplier
from tvm_compress.targets.mcu.dsp.pooling import Maxima, Means
from tvm_compress.targets.mcu.dsp.requantize import Requantize
from tvm_compress.targets.mcu.integer_steps import Mean, Node, Windows

Array = NDArray[Any]
Finish = tuple[Callable[[int], Node], Callable[[Array, int], Array]]


def windows(
    size: tuple[int, int],
    kernel: tuple[int, int],
    channels: int,
    strides: tuple[int, int] = (1, 1),
    before: tuple[int, int] = (0, 0),
    after: tuple[int, int] = (0, 0),
) -> Windows:
    out = [(size[i] + before[i] + after[i] - kernel[i]) // strides[i] + 1 for i in (0, 1)]
    return Windows(size, (out[0], out[1]), kernel, strides, before, channels)


def whole(pixels: int, channels: int) -> Windows:
    return windows((1, pixels), (1, pixels), channels)


def of_windows(w: Windows, x: Array, function: Any) -> Array:
    """Apply a function to the pixels of each window that lie in the image, (pixels, channels)."""
    y = np.zeros((*w.out_size, w.channels), np.int64)
    for i, j in np.ndindex(w.out_size):
        top, left = (n * s - p for n, s, p in zip((i, j), w.strides, w.padding, strict=True))
        rows = slice(max(top, 0), top + w.kernel[0])
        columns = slice(max(left, 0), left + w.kernel[1])
        y[i, j] = function(x[rows, columns].reshape(-1, w.channels).astype(np.int64))
    return y


def narrowed(node: Node) -> Node:
    low, high = node.interval
    node = node if low >= -128 else Node("at_least", (node,), -128)
    return node if high <= 127 else Node("at_most", (node,), 127)


def _leaf(pixels: int) -> Node:
    return Node("sum", (), pixels)


def _away(total: Array, pixels: int) -> Array:
    return np.asarray(np.sign(total) * ((2 * np.abs(total) + pixels) // (2 * pixels)))


def _upwards(pixels: int) -> Node:
    moved = Node("add_number", (_leaf(pixels),), pixels * 128 + pixels // 2)
    return Node("add_number", (Node("divide", (moved,), pixels),), -128)


def _scaled(rounding: str, zero: int, gain: float, low: int = -128, high: int = 127) -> Finish:
    """Subtract a zero point from each pixel, then requantize the mean."""

    def factors(pixels: int) -> tuple[int, int]:
        multiplier, shift = quantize_multiplier(gain / pixels, rounding)
        return int(multiplier), int(shift)

    def tree(pixels: int) -> Node:
        multiplier, shift = factors(pixels)
        centred = Node("add_number", (_leaf(pixels),), -zero * pixels)
        if rounding == "double":
            node = Node("halve_away", (Node("high", (centred,), multiplier),), -shift)
        else:
            node = Node("halve_up", (Node("low", (centred,), multiplier),), -shift)
        node = Node("add_number", (node,), 5)
        return Node("at_most", (Node("at_least", (node,), low),), high)

    def meaning(total: Array, pixels: int) -> Array:
        m, s = (np.array([v], np.int32) for v in factors(pixels))
        r = Requantize(m, s, 5, rounding, low, high)  # type: ignore[arg-type]
        return requantized(r, (total - zero * pixels).reshape(-1, 1)).reshape(total.shape)

    return tree, meaning


_FINISHES: dict[str, Finish] = {
    "ties away from zero": (lambda n: Node("divide_away", (_leaf(n),), n), _away),
    "ties upwards": (_upwards, lambda total, n: (2 * total + n + 256 * n) // (2 * n) - 128),
    "scaled, rounded twice": _scaled("double", -11, 0.95),
    "scaled, rounded once": _scaled("single", 17, 0.45),
    "clamped": _scaled("double", 3, 0.9, -20, 60),
}


def _check_mean(w: Windows, name: str, x: Array, at_end: bool = True) -> None:
    tree, meaning = _FINISHES[name]
    pixels = math.prod(w.kernel)
    kernel = Means(Mean(w, narrowed(tree(pixels))))
    assert Means.refuses(kernel.mean) is None
    right = meaning(of_windows(w, x, lambda p: p.sum(axis=0)), pixels).astype(np.int8)
    function = kernel.function()
    code = assemble({"f": function})["f"]
    assert len(code) <= function.code_bytes
    buffers = [x, np.zeros(right.shape, np.int8), np.zeros(4, np.uint8)]
    called = call(code, buffers, [1], at_end=at_end, offset=1)
    np.testing.assert_array_equal(called.buffers[1], right, f"{w} {name}")
    skipped = function.instructions - called.instructions
    # Where four channels leave a rest, all but the first step back in vain; a clamp may too.
    fours = -(-w.channels // 4)
    back = 2 * (fours - 1) * math.prod(w.out_size) if w.channels % 4 else 0
    assert skipped >= back
    assert skipped - back <= (8 * fours * math.prod(w.out_size) if name == "clamped" else 0)


_SHAPES = {
    "25 x 5": windows((25, 5), (25, 5), 8),
    "one pixel": whole(1, 6),
    "all that a lane holds": whole(256, 4),
    "one more": whole(257, 5),
    "several times": whole(3 * 256, 7),
    "several times and a rest": whole(700, 9),
    "wide pixels": whole(9, 1100),
    "2 x 2": windows((6, 8), (2, 2), 12, (2, 2)),
    "rows of windows": windows((5, 3), (2, 3), 5, (3, 1)),
    "columns of windows": windows((4, 9), (4, 2), 7, (1, 3)),
    "overlapping": windows((7, 9), (3, 4), 4, (2, 1)),
    "high": windows((20, 6), (15, 4), 6, (5, 2)),
    "1-D": windows((1, 12), (1, 3), 10, (1, 3)),
}


@pytest.mark.parametrize("finish", _FINISHES)
def test_means_of_random_pixels_and_of_the_ends(finish: str) -> None:
    chance = np.random.default_rng(len(finish))
    for i, w in enumerate(_SHAPES.values()):
        x = chance.integers(-128, 128, (*w.in_size, w.channels)).astype(np.int8)
        _check_mean(w, finish, x, at_end=i % 2 == 0)
    for end in (-128, 127):
        for name in ("all that a lane holds", "one more", "several times"):
            w = _SHAPES[name]
            _check_mean(w, finish, np.full((*w.in_size, w.channels), end, np.int8))


@given(st.data())
@settings(max_examples=25)
def test_means_of_any_windows(data: st.DataObject) -> None:
    kernel, strides = (
        (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))) for _ in range(2)
    )
    size = tuple(data.draw(st.integers(k, k + 5)) for k in kernel)
    w = windows((size[0], size[1]), kernel, data.draw(st.integers(4, 19)), strides)
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 16)))
    x = chance.choice(np.array([-128, -1, 0, 1, 127], np.int8), (*size, w.channels))
    _check_mean(w, data.draw(st.sampled_from(list(_FINISHES))), x)


def test_every_tie_of_a_mean() -> None:
    """Sums of two pixels: each is a tie or a whole number."""
    x = np.stack([np.arange(-128, 128), np.arange(-128, 128)[::-1] // 2]).astype(np.int8)
    for name in ("ties away from zero", "ties upwards"):
        _check_mean(whole(2, 256), name, x.reshape(1, 2, 256))


def _refusal(w: Windows, node: Node | None = None) -> str | None:
    leaf = _leaf(math.prod(w.kernel))
    return Means.refuses(Mean(w, node or Node("divide", (leaf,), math.prod(w.kernel))))


def test_means_that_are_refused() -> None:
    leaf = _leaf(9)
    assert _refusal(whole(9, 4)) is None
    assert _refusal(whole(9, 3)) == "it has fewer than four channels"
    assert _refusal(whole(9, 4096)) == "it is too large"
    padded = windows((5, 5), (3, 3), 8, before=(1, 1), after=(1, 1))
    below = windows((5, 5), (3, 3), 8, (3, 3), after=(1, 1))
    for w in (padded, below):
        assert _refusal(w) == "a window reaches beyond the image"
    assert _refusal(windows((20, 20), (17, 16), 4)) == "a window is too large"
    assert _refusal(windows((20, 20), (16, 16), 4)) is None
    assert _refusal(windows((20, 20), (17, 20), 4)) is None
    assert _refusal(whole(1 << 24, 4)) == "it is too large"
    assert _refusal(whole(9, 4), leaf) == "its result could leave int8"
    many = Node("multiply", (leaf,), 1 << 21)
    assert _refusal(whole(9, 4), narrowed(many)) == "a number could leave int32"
    inner = Node("at_most", (leaf,), 9)
    assert _refusal(whole(9, 4), narrowed(Node("add_number", (inner,), 1))) == (
        "there is more between the sum and its clamp than a chain of numbers"
    )
    numbers = leaf
    for i in range(7):
        numbers = Node("add_number", (numbers,), 5000 + i)
    assert _refusal(whole(9, 4), narrowed(numbers)) == "there are too many constants"


# -- maxima ---------------------------------------------------------------------------------------


def _check_maxima(shapes: Sequence[Windows], seed: int = 0) -> None:
    chance = np.random.default_rng(seed)
    functions = []
    for w in shapes:
        assert Maxima.refuses(w) is None, w
        functions.append(Maxima(w).function())
    codes = assemble({f"f{i}": function for i, function in enumerate(functions)})
    for i, (w, function) in enumerate(zip(shapes, functions, strict=True)):
        code = codes[f"f{i}"]
        assert len(code) <= function.code_bytes
        x = chance.integers(-128, 128, (*w.in_size, w.channels))
        x = np.where(chance.random(x.shape) < 0.3, chance.choice([-128, 127], x.shape), x)
        x = x.astype(np.int8)
        right = of_windows(w, x, lambda p: p.max(axis=0)).astype(np.int8)
        for at_end in (True, False):
            buffers = [x, np.zeros(right.shape, np.int8), np.zeros(4, np.uint8)]
            called = call(code, buffers, [1], at_end=at_end, offset=1)
            np.testing.assert_array_equal(called.buffers[1], right, str(w))
            assert called.instructions == function.instructions


def test_maxima() -> None:
    around = {"before": (1, 1), "after": (1, 1)}
    _check_maxima(
        [
            windows((6, 8), (2, 2), 8, (2, 2)),
            windows((7, 9), (2, 2), 5, (2, 2)),
            windows((7, 9), (2, 2), 5, (2, 2), after=(1, 1)),
            windows((7, 6), (3, 3), 6, **around),
            windows((8, 6), (3, 3), 9, (2, 2), before=(0, 0), after=(1, 1)),
            windows((9, 9), (3, 3), 4, (2, 2), **around),
            windows((1, 20), (1, 4), 7, (1, 2), before=(0, 1), after=(0, 2)),
            windows((2, 2), (3, 3), 4, **around),
            windows((1, 1), (1, 1), 11),
            windows((3, 40), (2, 2), 200, (1, 5)),
        ]
    )


def test_all_pairs_of_bytes() -> None:
    w = windows((2, 256), (2, 1), 256)
    grid = np.arange(-128, 128).astype(np.int8)
    x = np.stack(np.meshgrid(grid, grid, indexing="ij"))
    code = assemble({"f": Maxima(w).function()})["f"]
    buffers = [x, np.zeros((1, 256, 256), np.int8), np.zeros(4, np.uint8)]
    np.testing.assert_array_equal(call(code, buffers, [1]).buffers[1][0], x.max(axis=0))


@given(st.data())
@settings(max_examples=15)
def test_maxima_of_any_windows(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    shapes = []
    for _ in range(4):
        kernel, strides = pair(1, 4), pair(1, 3)
        before = tuple(data.draw(st.integers(0, k - 1)) for k in kernel)
        after = tuple(data.draw(st.integers(0, k - 1)) for k in kernel)
        size = pair(4, 9)
        w = windows(
            size,
            kernel,
            data.draw(st.integers(4, 13)),
            strides,
            (before[0], before[1]),
            (after[0], after[1]),
        )
        shapes.append(w)
    _check_maxima(shapes, data.draw(st.integers(0, 1 << 16)))


@pytest.mark.parametrize(
    ("w", "why"),
    [
        (windows((6, 6), (2, 2), 3), "it has fewer than four channels"),
        (windows((9, 9), (5, 2), 4), "a window is too high"),
        (windows((9, 9), (2, 5), 1000), "a window is too wide"),
        (windows((9, 9), (2, 4), 1024), None),
        (
            replace(windows((6, 6), (2, 2), 4), padding=(2, 0)),
            "a window lies beyond the image",
        ),
    ],
)
def test_maxima_that_are_refused(w: Windows, why: str | None) -> None:
    assert Maxima.refuses(w) == why
