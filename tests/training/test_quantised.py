"""Fine-tuning of networks in the QDQ form: through the roundings, to integers again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from tests.training.nets import classes_of, dense_net, pruned
from tvm_compress import edge, ir, qdq
from tvm_compress.passes import Quantize, ShareWeights
from tvm_compress.targets.reference import run
from tvm_compress.training import TorchModule, finetune, teacher_outputs

X, Y = classes_of(256)
NAMES = ("w1", "b1", "w2", "matmul_2_bias")


def quantised(io: Any = "int8", **how: Any) -> tvm.IRModule:
    return Quantize(io=io).on(X)(dense_net(**how))


def numbers(mod: tvm.IRModule) -> list[NDArray[Any]]:
    """All scales and zero points, in order."""
    return [
        edge.constant_value(arg)
        for b in ir.bindings(ir.main_function(mod))
        if edge.op_name(b.value) in ("relax.quantize", "relax.dequantize")
        for arg in b.value.args[1:]
    ]


def loss_of(mod: tvm.IRModule) -> float:
    logits = TorchModule(qdq.with_reals(mod), before_softmax=True)(torch.from_numpy(X[:, None]))
    return float(torch.nn.functional.cross_entropy(logits.reshape(-1, 3), torch.from_numpy(Y)))


@pytest.mark.parametrize("io", ["int8", "float"])
def test_training_lowers_the_loss_and_gives_integers_of_the_same_scales(io: Any) -> None:
    start = quantised(io, change=pruned)
    end = finetune(start, (X, Y), epochs=6, lr=0.01, progress=False)
    assert loss_of(end) < 0.5 * loss_of(start)
    before, after = ir.parameters(start), ir.parameters(end)
    assert list(before) == list(after)
    for name, parameter in before.items():
        assert after[name].value.dtype == parameter.value.dtype in (np.int8, np.int32)
        assert (after[name].value != parameter.value).any(), name
    zero = before["w1"].value == 0
    assert zero.mean() >= 0.5 and (after["w1"].value[zero] == 0).all()
    assert after["w1"].value.min() >= -127
    for one, other in zip(numbers(start), numbers(end), strict=True):
        np.testing.assert_array_equal(one, other)
    types = [[edge.dtype_of(p) for p in ir.main_function(m).params] for m in (start, end)]
    assert types[0] == types[1]


def test_nothing_changes_without_an_epoch() -> None:
    start = quantised()
    # Biases may have more digits than float32.
    wide = edge.constant(np.array([2**31 - 5, -(2**30) - 1, 12345677], np.int32))
    start = ir.replace_parameters(start, {NAMES[3]: wide})
    assert set(NAMES) == set(ir.parameters(start))
    tvm.ir.assert_structural_equal(finetune(start, (X, Y), epochs=0, progress=False), start)


def test_torch_runs_what_numpy_runs() -> None:
    real = qdq.with_reals(quantised())
    got = TorchModule(real)(torch.from_numpy(X[:40, None])).detach().numpy()
    want = run(real, X[:40])
    np.testing.assert_allclose(got.reshape(40, 3), next(iter(want.values())), atol=1.01 / 256)


def test_gradients_go_straight_through_the_roundings() -> None:
    mod = quantised("float", softmax=False)
    net = TorchModule(mod)
    (net(torch.from_numpy(X[:8, None])).sum()).backward()
    # The float network of the same integers has nearly the same gradients.
    plain = ir.parameters(mod)
    how = qdq.integer_parameters(mod)
    w1, b1, w2, b2 = (
        torch.from_numpy((plain[n].value * how[n].scale).astype(np.float32)).requires_grad_()
        for n in NAMES
    )
    (torch.relu(torch.from_numpy(X[:8]) @ w1 + b1) @ w2 + b2).sum().backward()
    for name, wanted in zip(NAMES, (w1, b1, w2, b2), strict=True):
        grad = getattr(net, f"{name}:value").grad
        assert wanted.grad is not None
        np.testing.assert_allclose(grad, wanted.grad, atol=0.02 * float(wanted.grad.abs().max()))


def test_integers_and_real_numbers_are_the_same_data() -> None:
    start = quantised()
    whole = qdq.input_parameters(start)["x"].quantize(X)
    real = qdq.input_parameters(start)["x"].dequantize(whole)
    one, two = (
        finetune(start, (x, Y), validation=(x, Y), epochs=1, progress=False) for x in (whole, real)
    )
    tvm.ir.assert_structural_equal(one, two)


def test_a_teacher_and_its_pupil_may_both_be_quantised() -> None:
    targets = teacher_outputs(dense_net(), X)
    assert teacher_outputs(quantised(), X).shape == targets.shape
    whole = qdq.input_parameters(quantised())["x"].quantize(X)
    np.testing.assert_allclose(teacher_outputs(quantised(), whole), targets, atol=0.2)
    start = quantised()
    end = finetune(
        start,
        (X, targets),
        loss="distillation",
        teacher=quantised(),
        augment=same,
        epochs=1,
        progress=False,
    )
    assert list(ir.parameters(end)) == list(ir.parameters(start))


def same(x: Any, random: Any) -> Any:
    return x


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shared_first", [True, False])
def test_codes_stay_and_centroids_stay_integers(shared_first: bool, groups: int) -> None:
    share = ShareWeights(bits=3, groups=groups)
    if shared_first:
        start = Quantize().on(X)(share.apply(dense_net(change=pruned)))
    else:
        start = share.apply(quantised(change=pruned))
    end = finetune(start, (X, Y), epochs=5, lr=0.02, progress=False)
    assert loss_of(end) < loss_of(start)
    changed = 0
    for name in ("w1", "w2"):
        before, after = ir.parameters(start)[name], ir.parameters(end)[name]
        assert before.centroids is not None and after.centroids is not None
        np.testing.assert_array_equal(before.codes, after.codes)
        assert after.centroids.dtype == np.int8 and after.centroids.shape == before.centroids.shape
        assert (after.centroids[..., 0] == 0).all()
        changed += int((before.centroids != after.centroids).sum())
    assert changed


def test_a_recipe_quantises_and_trains() -> None:
    recipe = tc.Recipe(
        [
            {"step": "prune", "sparsity": 0.5},
            {"step": "quantize"},
            {"step": "finetune", "epochs": 8, "lr": 0.02},
            {"step": "share-weights", "bits": 4},
            {"step": "finetune", "epochs": 4},
        ]
    )
    small = tc.compress(dense_net(), recipe, train=(X, Y), progress=False)
    table = ir.parameters(small)["w1"].centroids
    assert table is not None and table.dtype == np.int8
    taken = qdq.input_parameters(small)["x"].quantize(X)
    assert (next(iter(run(small, taken).values())).argmax(1) == Y).mean() > 0.8
