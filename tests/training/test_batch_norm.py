"""Batch normalisation that no weight in front can take in: what becomes of its statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from tests.training.nets import module
from tvm_compress import edge, ir
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.recipe import Finetune, Recipe
from tvm_compress.targets import reference

pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

RNG = np.random.default_rng(0)
WEIGHTS: dict[str, NDArray[np.float32]] = {
    "first": RNG.normal(0, 0.5, (4, 2, 3, 3)),
    "gamma": RNG.uniform(0.5, 2, 6),
    "beta": RNG.normal(size=6),
    "mean": RNG.normal(size=6),
    "var": RNG.uniform(0.2, 3, 6),
    "second": RNG.normal(0, 0.5, (5, 6, 3, 3)),
}
WEIGHTS = {name: value.astype(np.float32) for name, value in WEIGHTS.items()}
EPSILON = 1e-3


def network(*, training: bool = False) -> tvm.IRModule:
    """A block that normalises before its convolution, behind a concatenation."""

    def body(x: Any, first: Any, gamma: Any, beta: Any, mean: Any, var: Any, second: Any) -> Any:
        joined = op.concat([x, op.nn.conv2d(x, first, padding=1)], 1)
        normal = op.nn.batch_norm(
            joined, gamma, beta, mean, var, axis=1, epsilon=EPSILON, training=training
        )
        y = op.nn.conv2d(op.nn.relu(normal[0]), second, padding=1)
        return op.reshape(op.mean(y, [2, 3]), (1, 5))

    return module({"x": (1, 2, 6, 6)}, WEIGHTS, body)


def operators(mod: tvm.IRModule) -> list[str | None]:
    return [edge.op_name(binding.value) for binding in ir.bindings(ir.main_function(mod))]


def data() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(24, 2, 6, 6)).astype(np.float32), rng.integers(0, 5, 24)


def test_loading_makes_a_factor_and_a_summand_of_each_channel() -> None:
    mod = tc.load(network())
    assert "relax.nn.batch_norm" not in operators(mod)
    found = ir.parameters(mod)
    assert not {"mean", "var"} & set(found)
    factor = WEIGHTS["gamma"] / np.sqrt(WEIGHTS["var"].astype(np.float64) + EPSILON)
    np.testing.assert_allclose(found["gamma"].value.ravel(), factor, rtol=1e-6)
    summand = WEIGHTS["beta"] - WEIGHTS["mean"] * factor
    np.testing.assert_allclose(found["beta"].value.ravel(), summand, rtol=1e-5, atol=1e-6)
    x = data()[0][:1]
    np.testing.assert_allclose(
        *(next(iter(reference.run(m, x).values())) for m in (mod, network())), rtol=1e-5, atol=1e-6
    )


def test_fine_tuning_trains_both_behind_pruning() -> None:
    mod = tc.load(network())
    recipe = Recipe([Prune(0.5), Finetune(2, lr=1e-2, batch_size=8), ShareWeights(3)])
    small = tc.compress(mod, recipe, train=data(), progress=False)
    assert operators(small).count("relax.multiply") == operators(mod).count("relax.multiply") == 1
    before, after = ir.parameters(mod), ir.parameters(small)
    assert set(before) == set(after)
    for name in ("gamma", "beta"):
        # Each channel has moved, and by a few steps alone.
        moved = np.abs(after[name].value - before[name].value)
        assert (moved > 0).all() and (moved < 0.2).all()
        assert not after[name].shared
    assert [after[name].shared for name in ("first", "second")] == [True, True]


def test_statistics_of_the_batch_stay_with_the_operator() -> None:
    mod = tc.load(network(training=True))
    assert operators(mod).count("relax.nn.batch_norm") == 1
    recipe = Recipe([Prune(0.5), Finetune(1, lr=1e-2, batch_size=8)])
    after = ir.parameters(tc.compress(mod, recipe, train=data(), progress=False))
    for name in ("mean", "var"):
        np.testing.assert_array_equal(after[name].value, WEIGHTS[name])
    for name in ("gamma", "beta"):
        assert (after[name].value != WEIGHTS[name]).all()
