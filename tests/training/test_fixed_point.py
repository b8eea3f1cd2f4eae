"""Fine-tuning of weights in fixed point, and of codebooks of several parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training.nets import classes_of, dense_net, module, pruned
from tvm_compress import ir
from tvm_compress.fixed_point import encode, grid, step_of
from tvm_compress.ops import codebook_numpy
from tvm_compress.passes import FixedPoint, ShareWeights
from tvm_compress.training import TorchModule, finetune
from tvm_compress.training.interpreter import FixedPointWeight, SharedWeight


def loss_of(mod: Any, x: Any, y: Any) -> float:
    logits = TorchModule(mod, before_softmax=True)(torch.from_numpy(x[:, None])).reshape(len(y), -1)
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).detach())


@given(st.integers(2, 8), st.floats(2.0**-10, 4.0, width=32), st.integers(0, 99))
def test_forward_is_the_grid_and_backward_goes_straight_through(
    bits: int, step: float, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(0, 2**bits * step / 3, 40).astype(np.float32)
    latent = torch.from_numpy(values).requires_grad_()
    table = grid(bits, step)
    weight: Tensor = FixedPointWeight.apply(latent, torch.from_numpy(table), torch.ones(1))
    np.testing.assert_array_equal(
        weight.detach().numpy(), table[encode(values, bits, np.float32(step))]
    )
    weight.backward(torch.arange(1.0, 41))
    assert latent.grad is not None
    # What the end of the grid clips away by less than half a step is only rounded.
    inside = (values > table.min() - step / 2) & (values < table.max() + step / 2)
    on_the_edge = np.isclose(values, table.min() - step / 2) | np.isclose(
        values, table.max() + step / 2
    )
    expected = np.arange(1, 41) * inside
    np.testing.assert_array_equal(latent.grad.numpy()[~on_the_edge], expected[~on_the_edge])


@pytest.mark.parametrize("scale", ["tensor", "channel"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_training_lowers_the_loss_and_stays_in_fixed_point(scale: Any, power_of_two: bool) -> None:
    x, y = classes_of(256)
    start = FixedPoint(3, scale, power_of_two)(dense_net(change=pruned))
    end = finetune(start, (x, y), epochs=8, lr=0.02, progress=False)
    assert loss_of(end, x, y) < 0.8 * loss_of(start, x, y)
    before, after = ir.parameters(start), ir.parameters(end)
    assert list(before) == list(after)
    changed = 0
    for name, parameter in before.items():
        if not parameter.shared:
            # A scale stays, a bias is trained.
            assert (after[name].value == parameter.value).all() == name.endswith("_scale")
            continue
        np.testing.assert_array_equal(after[name].centroids, parameter.centroids)
        assert step_of(after[name].centroids) is not None
        changed += int((after[name].codes != parameter.codes).sum())
        assert (after[name].codes[parameter.codes == 0] == 0).all()
    assert changed > 0


def test_what_was_trained_is_what_comes_out() -> None:
    net = TorchModule(FixedPoint(4)(dense_net()))
    with torch.no_grad():
        for name in ("w1", "w2"):
            latent = getattr(net, f"{name}:value")
            latent += 0.3 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    seen = {name: net.dense(name).detach().numpy() for name in ("w1", "w2")}
    made = ir.parameters(net.to_relax())
    for name, value in seen.items():
        np.testing.assert_array_equal(made[name].value, value)


def test_without_training_nothing_changes() -> None:
    for scale in ("tensor", "channel"):
        start = FixedPoint(5, scale)(dense_net())  # type: ignore[arg-type]
        end = ir.parameters(TorchModule(start).to_relax())
        for name, parameter in ir.parameters(start).items():
            np.testing.assert_array_equal(end[name].value, parameter.value)


def test_a_factor_that_scales_no_fixed_point_is_trained() -> None:
    from tvm.relax import op

    rng = np.random.default_rng(0)
    weight, factor = rng.standard_normal((6, 3)).astype("float32"), np.ones(3, "float32")

    def body(x: Any, w: Any, s: Any) -> Any:
        return op.multiply(op.matmul(x, w), s)

    x, y = classes_of(64)
    for value, held in (
        (weight, False),
        ((encode(weight, 4, np.float32(0.5)), grid(4, 0.5)), True),
        ((encode(weight, 4, np.float32(0.5)), np.sort(grid(4, 0.5))), False),
    ):
        mod = module({"x": (1, 6)}, {"w": value, "s": factor}, body)
        after = ir.parameters(finetune(mod, (x, y), lr=0.1, progress=False))
        assert (after["s"].value == 1).all() == held


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(0, 99))
def test_gradient_of_several_codebooks_sums_apart(
    groups: int, length: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, size, (4, groups * length)).astype(np.uint8)
    table = rng.standard_normal((1, groups, size)).astype(np.float32)
    gradient = rng.standard_normal(codes.shape).astype(np.float32)
    places = np.arange(table.size).reshape(table.shape).astype(np.float32)
    flat = torch.from_numpy(codebook_numpy(codes, places).astype(np.int32))
    centroids = torch.from_numpy(table).requires_grad_()
    weight: Tensor = SharedWeight.apply(flat, centroids)
    np.testing.assert_array_equal(weight.detach().numpy(), codebook_numpy(codes, table))
    weight.backward(torch.from_numpy(gradient))
    assert centroids.grad is not None
    expected = np.zeros(table.shape)
    for row, column in np.ndindex(*codes.shape):
        expected[0, column // length, codes[row, column]] += gradient[row, column]
    np.testing.assert_allclose(centroids.grad.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_several_codebooks_are_trained_and_their_zeros_held() -> None:
    x, y = classes_of(256)
    start = ShareWeights(2, groups=2)(dense_net(change=pruned))
    assert ir.parameters(start)["w1"].centroids.shape == (1, 2, 4)
    end = finetune(start, (x, y), epochs=6, lr=0.02, progress=False)
    assert loss_of(end, x, y) < loss_of(start, x, y)
    before, after = ir.parameters(start)["w1"], ir.parameters(end)["w1"]
    np.testing.assert_array_equal(after.codes, before.codes)
    assert not after.centroids[..., 0].any()
    assert (after.centroids[..., 1:] != before.centroids[..., 1:]).all()


def test_a_codebook_whose_first_centroid_is_not_zero_in_one_part() -> None:
    from tvm.relax import op

    table = np.array([[[0.0, 1.0]], [[0.5, 1.0]]], "float32").reshape(1, 2, 2)
    codes = np.random.default_rng(0).integers(0, 2, (6, 4)).astype("uint8")
    mod = module({"x": (1, 6)}, {"w": (codes, table)}, lambda x, w: op.matmul(x, w))
    net = TorchModule(mod)
    with torch.no_grad():
        getattr(net, "w:centroids").add_(1.0)
    net.hold_zeros()
    np.testing.assert_array_equal(
        getattr(net, "w:centroids").detach().numpy(), [[[0.0, 2.0], [1.5, 2.0]]]
    )


def test_a_scale_behind_the_sum_does_not_change_the_training() -> None:
    """One step for all channels, said in either of both ways, is trained to the same weights."""
    x, y = classes_of(128)
    tensor = FixedPoint(4, power_of_two=True)(dense_net())
    steps = {n: step_of(ir.parameters(tensor)[n].centroids) for n in ("w1", "w2")}
    from tvm.relax import op

    named = ir.parameters(tensor)

    def body(x: Any, w1: Any, s1: Any, b1: Any, w2: Any, s2: Any) -> Any:
        hidden = op.nn.relu(op.add(op.multiply(op.matmul(x, w1), s1), b1))
        return op.nn.softmax(op.multiply(op.matmul(hidden, w2), s2))

    parameters: dict[str, Any] = {}
    for weight, bias in (("w1", "b1"), ("w2", None)):
        codes = named[weight].codes
        assert codes is not None
        parameters[weight] = (codes, grid(4))
        parameters[f"s{weight[1]}"] = np.full(codes.shape[1], steps[weight], "float32")
        if bias:
            parameters[bias] = named[bias].value
    channel = module({"x": (1, 6)}, parameters, body)
    options: dict[str, Any] = {"epochs": 3, "lr": 0.02, "progress": False}
    one, two = (ir.parameters(finetune(m, (x, y), **options)) for m in (tensor, channel))
    # Powers of two scale without rounding, so the two trainings are the same to the bit.
    for name in ("w1", "w2"):
        assert (one[name].codes != named[name].codes).any()
        np.testing.assert_array_equal(one[name].codes, two[name].codes)
