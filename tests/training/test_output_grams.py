"""Gram matrices of the outputs' gradients, against gradients by hand and by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes.test_quantize import net
from tvm_compress import edge, ir
from tvm_compress.errors import DataError
from tvm_compress.targets.reference import run
from tvm_compress.training.output_grams import Rows, output_grams

pytest.importorskip("torch")
Array = NDArray[Any]
RNG = np.random.default_rng(7)
W = RNG.standard_normal((5, 4)).astype(np.float32)
B = RNG.standard_normal(4).astype(np.float32)


def dense(softmax: bool) -> Any:
    from tvm import relax

    def build(b: Any, x: Any) -> Any:
        y = b.emit(relax.op.matmul(x, b.emit(edge.constant(W), "w")))
        y = b.emit(relax.op.add(y, b.emit(edge.constant(B), "b")))
        return relax.op.nn.softmax(y) if softmax else y

    return net(build, (1, 5))


def test_of_squared_errors_it_is_the_gram_matrix_of_the_inputs() -> None:
    x = RNG.standard_normal((4000, 5)).astype(np.float32)
    found = output_grams(dense(softmax=False), x, [Rows("w", 1, "b")])["w"]
    assert found.shape == (4, 6, 6)
    ones = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    expected = ones.T @ ones / len(x)
    # One random combination a sample: its square is 1 on average.
    for gram in found:
        np.testing.assert_allclose(gram, expected, atol=0.15)


def test_behind_a_softmax_it_is_the_fisher_information() -> None:
    x = RNG.standard_normal((6000, 5)).astype(np.float32)
    found = output_grams(dense(softmax=True), x, [Rows("w", 1, "b")])["w"]
    logits = x.astype(np.float64) @ W + B
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    for row, gram in enumerate(found):
        weight = p[:, row] * (1 - p[:, row])
        expected = np.einsum("n,nc,nd->cd", weight, ones, ones) / len(x)
        np.testing.assert_allclose(gram, expected, atol=0.035)


def test_of_a_convolution_it_says_what_a_change_of_a_row_does() -> None:
    from tvm import relax

    weight = RNG.standard_normal((3, 2, 3, 3)).astype(np.float32)

    def build(b: Any, x: Any) -> Any:
        y = b.emit(relax.op.nn.conv2d(x, b.emit(edge.constant(weight), "w"), padding=1))
        y = b.emit(relax.op.nn.relu(y))
        return relax.op.mean(y, axis=[2, 3])

    mod = net(build, (1, 2, 6, 6))
    x = RNG.standard_normal((1500, 2, 6, 6)).astype(np.float32)
    (gram,) = output_grams(mod, x, [Rows("w", 0, None)]).values()
    assert not gram[:, -1].any()
    assert not gram[:, :, -1].any()
    change = np.zeros((3, 2, 3, 3), np.float32)
    change[1] = 1e-2 * RNG.standard_normal((2, 3, 3))
    moved = ir.replace_parameters(mod, {"w": edge.constant(weight + change)})
    before, after = (
        np.concatenate([next(iter(run(m, x[i : i + 1]).values())) for i in range(200)])
        for m in (mod, moved)
    )
    measured = np.square(after.astype(np.float64) - before).sum(1).mean()
    flat = change[1].ravel().astype(np.float64)
    predicted = flat @ gram[1, :-1, :-1] @ flat
    assert predicted == pytest.approx(measured, rel=0.2)


def test_the_same_seed_gives_the_same() -> None:
    x = RNG.standard_normal((60, 5)).astype(np.float32)
    one, again, other = (
        output_grams(dense(softmax=True), x, [Rows("w", 1, None)], seed=seed)["w"]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_bad_samples() -> None:
    with pytest.raises(DataError, match="has no samples"):
        output_grams(dense(softmax=True), np.zeros((0, 5), np.float32), [])
    with pytest.raises(DataError, match="finite"):
        output_grams(dense(softmax=True), np.full((2, 5), np.nan, np.float32), [])
