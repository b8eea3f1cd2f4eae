"""The module in torch: its parameters, the gradient of shared weights, real networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm.relax import op

from tests.training.nets import dense_net, module, pruned, shared
from tvm_compress import edge, ir
from tvm_compress.errors import DataError, MissingToolError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.passes import ShareWeights
from tvm_compress.targets.reference import run
from tvm_compress.tensors import input_specs

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tvm_compress.training import TorchModule  # noqa: E402

# Figure 3 of Deep Compression (arXiv 1510.00149).
WEIGHTS = [
    [2.09, -0.98, 1.48, 0.09],
    [0.05, -0.14, -1.08, 2.12],
    [-0.91, 1.92, 0.0, -1.03],
    [1.87, 0.0, 1.53, 1.49],
]
CODES = [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
CENTROIDS = [-1.0, 0.0, 1.5, 2.0]
GRADIENT = [
    [-0.03, -0.01, 0.03, 0.02],
    [-0.01, 0.01, -0.02, 0.12],
    [-0.01, 0.02, 0.04, 0.01],
    [-0.07, -0.02, 0.01, -0.02],
]
# By hand: code 0 stands at (0,1) (1,2) (2,0) (2,3): -0.01 - 0.02 - 0.01 + 0.01 = -0.03,
# code 1 at (0,3) (1,0) (1,1) (2,2) (3,1): 0.02 - 0.01 + 0.01 + 0.04 - 0.02 = 0.04,
# code 2 at (0,2) (3,2) (3,3): 0.03 + 0.01 - 0.02 = 0.02,
# code 3 at (0,0) (1,3) (2,1) (3,0): -0.03 + 0.12 + 0.02 - 0.07 = 0.04.
SUMS = [-0.03, 0.04, 0.02, 0.04]


def figure_3(first_input: str = "x") -> tvm.IRModule:
    weight = np.array(CODES, "uint8"), np.array(CENTROIDS, "float32")
    return module({first_input: (1, 4)}, {"w": weight}, op.matmul)


def test_gradient_of_a_centroid_is_the_sum_over_its_weights() -> None:
    net = TorchModule(figure_3())
    (net.dense("w") * torch.tensor(GRADIENT)).sum().backward()
    centroids = dict(net.named_parameters())["w:centroids"]
    assert centroids.grad is not None
    np.testing.assert_allclose(centroids.grad.numpy(), SUMS, atol=1e-7)
    with torch.no_grad():
        centroids.sub_(1.0 * centroids.grad)
    net.hold_zeros()
    tuned = ir.parameters(net.to_relax())["w"]
    assert tuned.centroids is not None
    assert tuned.codes is not None
    # This codebook's entry 0 is -1.0 and so not the zero centroid: all four are trained.
    np.testing.assert_allclose(tuned.centroids, [-0.97, -0.04, 1.48, 1.96], atol=1e-6)
    np.testing.assert_array_equal(tuned.codes, CODES)


def test_sixteen_weights_in_four_clusters_take_160_bits() -> None:
    parameter = ir.parameters(figure_3())["w"]
    assert parameter.codes is not None
    assert parameter.centroids is not None
    bits = int(parameter.centroids.size - 1).bit_length()
    assert parameter.value.size * 32 == 512
    assert parameter.centroids.size * 32 + parameter.codes.size * bits == 160


def test_the_paper_s_weights_are_nearest_to_their_codes() -> None:
    nearest = np.abs(np.array(WEIGHTS)[..., None] - CENTROIDS).argmin(-1)
    np.testing.assert_array_equal(nearest, CODES)


@given(st.integers(0, 2**32 - 1), st.integers(1, 256), st.integers(1, 40))
def test_summed_gradient_equals_a_loop(seed: int, count: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, count, (4, size)).astype("uint8")
    weight = codes, rng.normal(size=count).astype("float32")
    net = TorchModule(module({"x": (1, 4)}, {"w": weight}, op.matmul))
    gradient = rng.normal(size=(4, size)).astype("float32")
    net.dense("w").backward(torch.from_numpy(gradient))
    expected = np.zeros(count)
    for code, value in zip(codes.ravel(), gradient.ravel(), strict=True):
        expected[code] += value
    got = dict(net.named_parameters())["w:centroids"].grad
    assert got is not None
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_gradient_in_a_batch_equals_finite_differences() -> None:
    mod = dense_net(change=shared, softmax=False)
    net = TorchModule(mod).double()
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 1, 6)))
    net(x).square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        for index in range(parameter.numel()):
            flat = parameter.data.view(-1)
            values = []
            for step in (1e-6, -2e-6):
                flat[index] += step
                values.append(float(net(x).square().sum().detach()))
            flat[index] += 1e-6
            slope = (values[0] - values[1]) / 2e-6
            assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def conv_net() -> tvm.IRModule:
    """A convolution of a shared weight, a pool, one convolution a channel: (1, 2, 6, 6) in."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (3, 2, 3, 3)).astype("uint8")
    centroids = np.array([0.0, -0.5, 0.3, 0.7], "float32")
    depthwise = rng.normal(size=(3, 1, 2, 2)).astype("float32")

    def body(x: Any, shared: Any, depthwise: Any) -> Any:
        y = op.nn.max_pool2d(op.nn.conv2d(x, shared, padding=1), (2, 2), (2, 2))
        return op.nn.conv2d(y, depthwise, groups=3)

    return module({"x": (1, 2, 6, 6)}, {"w": (codes, centroids), "d": depthwise}, body)


def test_gradients_of_convolutions_are_those_of_torch() -> None:
    mod = conv_net()
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 2, 6, 6)).astype("float32"))
    net = TorchModule(mod)
    found = net(x[:, None])
    found.square().sum().backward()
    functional = torch.nn.functional
    first = torch.tensor(ir.parameters(mod)["w"].value, requires_grad=True)
    second = torch.tensor(ir.parameters(mod)["d"].value, requires_grad=True)
    y = functional.max_pool2d(functional.conv2d(x, first, padding=1), 2)
    y = functional.conv2d(y, second, groups=3)
    y.square().sum().backward()
    torch.testing.assert_close(found[:, 0], y)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    torch.testing.assert_close(gradients["d:value"], second.grad)
    codes = torch.from_numpy(np.array(ir.parameters(mod)["w"].codes))
    assert first.grad is not None
    sums = torch.stack([first.grad[codes == code].sum() for code in range(4)])
    torch.testing.assert_close(gradients["w:centroids"], sums, rtol=1e-4, atol=1e-4)


def test_convolutions_run_with_their_channels_innermost() -> None:
    # It is faster, and nothing but the strides tells of it.
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 1, 3, 3)).astype("float32")
    net = TorchModule(module({"x": (1, 1, 6, 6)}, {"w": weight}, op.nn.conv2d))
    y = net(torch.zeros(4, 1, 1, 6, 6))
    assert y.shape == (4, 1, 3, 4, 4)
    assert y[:, 0].is_contiguous(memory_format=torch.channels_last)


def test_parameters_are_those_of_the_ir() -> None:
    net = TorchModule(dense_net(change=shared))
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "w1:centroids": (4,),
        "b1:value": (8,),
        "w2:value": (8, 3),
    }
    assert all(p.requires_grad for p in net.parameters())


def test_module_keeps_no_memory_of_the_ir() -> None:
    mod = dense_net()
    before = {name: p.value.copy() for name, p in ir.parameters(mod).items()}
    net = TorchModule(mod)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    for name, old in ir.parameters(mod).items():
        np.testing.assert_array_equal(old.value, before[name])
    for name, new in ir.parameters(net.to_relax()).items():
        np.testing.assert_array_equal(new.value, before[name] + 1)


def test_unchanged_parameters_give_the_same_module() -> None:
    for change in (None, pruned, shared):
        mod = load(dense_net(change=change))
        tvm.ir.assert_structural_equal(TorchModule(mod).to_relax(), mod)


def test_zeros_of_weights_and_zero_centroids_are_held() -> None:
    net = TorchModule(dense_net(change=pruned))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    net.hold_zeros()
    for name, new in ir.parameters(net.to_relax()).items():
        old = ir.parameters(dense_net(change=pruned))[name].value
        held = (old == 0) & (name != "b1")
        np.testing.assert_array_equal(new.value, np.where(held, 0, old + 1))
        assert not np.signbit(new.value[held]).any()
    net = TorchModule(dense_net(change=shared))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    net.hold_zeros()
    tuned = ir.parameters(net.to_relax())["w1"]
    assert tuned.centroids is not None
    np.testing.assert_allclose(tuned.centroids, [0.0, 0.5, 1.3, 1.7], rtol=1e-6)


def test_a_dense_weight_without_zeros_has_no_mask() -> None:
    def buffers(mod: tvm.IRModule) -> list[str]:
        return [name for name, _ in TorchModule(mod).named_buffers()]

    assert buffers(dense_net()) == []
    assert buffers(dense_net(change=pruned)) == ["w1:value:zeros"]
    # A zero in a bias is a value like any other.
    zero_bias = {"w": np.ones((4, 2), "float32"), "b": np.zeros(2, "float32")}
    mod = module({"x": (1, 4)}, zero_bias, lambda x, w, b: op.add(op.matmul(x, w), b))
    assert buffers(mod) == []


def test_statistics_scales_and_infinities_are_not_trained() -> None:
    vector, scale = np.ones(3, "float32"), np.array([0.5, 1, 2], "float32")
    parameters = {
        "gamma": vector,
        "beta": vector,
        "mean": vector,
        "var": vector,
        "scale": scale,
        "zero": np.zeros(3, "int8"),
        "mask": np.array([0, -np.inf, 0], "float32"),
        "count": np.ones(3, "int32"),
    }

    def body(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, scale: Any, zero: Any, mask: Any,
             count: Any) -> Any:  # fmt: skip
        builder = tvm.relax.BlockBuilder.current()
        norm = builder.emit(op.nn.batch_norm(x, gamma, beta, mean, var, 1, training=False))
        y = op.quantize(tvm.ir.TupleGetItem(norm, 0), scale, zero, 1, "int8")
        y = op.dequantize(builder.emit(y), scale, zero, 1)
        return op.multiply(op.add(builder.emit(y), mask), op.astype(count, "float32"))

    mod = module({"x": (1, 3)}, parameters, body)
    net = TorchModule(mod)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {"gamma:value", "beta:value"}
    assert {n for n, p in net.named_parameters()} == {
        f"{name}:value" for name in parameters if name not in ("zero", "count")
    }
    x = np.array([[0.3, -1.0, 2.0]], "float32")
    np.testing.assert_array_equal(net(torch.from_numpy(x)).detach(), run(mod, x)["gv"])


def test_names_of_torch_s_own_attributes_may_be_parameters() -> None:
    parameters = {"type": np.ones((4, 2), "float32"), "forward": np.ones(2, "float32")}
    net = TorchModule(
        module({"training": (1, 4)}, parameters, lambda x, w, b: op.add(op.matmul(x, w), b))
    )
    assert net(torch.ones(1, 4)).tolist() == [[5, 5]]


def test_several_inputs_and_outputs() -> None:
    def body(a: Any, b: Any, w: Any) -> Any:
        builder = tvm.relax.BlockBuilder.current()
        return tvm.ir.Tuple([builder.emit(op.matmul(a, w)), builder.emit(op.add(a, b))])

    mod = module({"a": (1, 3), "b": (1, 3)}, {"w": np.eye(3, 2, dtype="float32")}, body)
    a, b = torch.rand(4, 1, 3), torch.rand(4, 1, 3)
    product, total = TorchModule(mod)(a, b)
    assert torch.equal(product, a[..., :2])
    assert torch.equal(total, a + b)


def test_input_of_the_last_softmax() -> None:
    x = torch.rand(4, 1, 6)
    logits = TorchModule(dense_net(softmax=False))(x)
    net = TorchModule(dense_net(), before_softmax=True)
    assert net.ends_in_softmax
    assert torch.equal(net(x), logits)
    assert not TorchModule(dense_net()).ends_in_softmax
    assert torch.allclose(TorchModule(dense_net())(x), logits.softmax(-1))
    plain = TorchModule(dense_net(softmax=False), before_softmax=True)
    assert not plain.ends_in_softmax


@pytest.mark.parametrize(
    ("shape", "axis", "found"),
    [((1, 5, 1, 1), 1, True), ((1, 5, 2, 1), 1, False), ((1, 2, 5), 2, True), ((1, 5), -1, True)],
)
def test_softmax_counts_where_its_axis_is_the_last(
    shape: tuple[int, ...], axis: int, found: bool
) -> None:
    def body(x: Any) -> Any:
        builder = tvm.relax.BlockBuilder.current()
        return op.reshape(builder.emit(op.nn.softmax(x, axis)), (1, -1))

    assert TorchModule(module({"x": shape}, {}, body), before_softmax=True).ends_in_softmax is found


def test_wrong_shapes_are_named() -> None:
    net = TorchModule(dense_net())
    message = (
        r"The inputs have the shapes \(3, 6\); expected x \(1, 6\), or all of them with one more "
        r"axis of samples in front\."
    )
    with pytest.raises(DataError, match=message):
        net(torch.zeros(3, 6))
    with pytest.raises(DataError, match="The inputs have the shapes of nothing; expected x"):
        net()


def test_unknown_operator_is_named() -> None:
    mod = module({"x": (4, 4)}, {}, lambda x: op.triu(x))
    message = (
        r"Fine-tuning: relax\.triu \(bound to \w+\) has no torch meaning; expected one of the "
        r"operators listed in docs/operators\.md: replace it in the network, or compress without "
        r"fine-tuning\."
    )
    with pytest.raises(UnsupportedError, match=message):
        TorchModule(mod)


def test_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm_compress.training as training

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingToolError, match=r"pip install 'tvm-compress\[train\]'\."):
        _ = training.finetune
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = training.nothing


NETWORKS = [
    "mlperf_tiny/ad01_float.onnx",
    "mlperf_tiny/ic_resnet8_float.tflite",
    "mlperf_tiny/kws_dscnn_float.onnx",
    "mlperf_tiny/vww_96_float.onnx",
    "models/arm_kws_DS_CNN_S.onnx",
    "models/ultraface_rfb320.onnx",
    "reference/han_squeezenet.onnx",
]


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks_equal_the_reference(name: str, shared_data: Path) -> None:
    mod = load(shared_data / name)
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.normal(size=s.shape).astype(s.dtype) for s in input_specs(mod)}
    expected = run(mod, inputs)
    # In float64 what is compared is the meaning, not the order of sums in float32.
    net = TorchModule(mod).double()
    with torch.no_grad():
        got = net(*[torch.from_numpy(x[None]).double() for x in inputs.values()])
    for tensor, want in zip(got if isinstance(got, tuple) else (got,), expected.values(),
                            strict=True):  # fmt: skip
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(tensor[0].numpy(), want, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["ad01_int8", "ic_resnet8_int8", "kws_dscnn_int8"])
def test_quantised_networks_are_within_a_step_of_the_reference(
    name: str, shared_data: Path
) -> None:
    mod = load(shared_data / "mlperf_tiny" / f"{name}.tflite")
    (spec,) = input_specs(mod)
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, spec.shape).astype("int8")
    (want,) = run(mod, x).values()
    with torch.no_grad():
        got = TorchModule(mod)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(got, np.round(got))
    # A value in the middle of two steps may round either way.
    assert np.abs(got - want).max() <= 1
    assert np.abs(got - want).mean() <= 0.05


def test_shared_network_runs_from_its_codes(digits_onnx: Path) -> None:
    mod = ShareWeights(bits=3)(load(digits_onnx))
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).random(spec.shape).astype(spec.dtype)
    (want,) = run(mod, x).values()
    (weight, *_) = ir.weights(mod)
    net = TorchModule(mod)
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach(), want, rtol=1e-4, atol=1e-5)
    centroids = dict(net.named_parameters())[f"{weight}:centroids"]
    with torch.no_grad():
        centroids.mul_(2)
    changed = ir.parameters(net.to_relax())[weight]
    np.testing.assert_array_equal(changed.value, 2 * ir.parameters(mod)[weight].value)
    assert edge.dtype_of(ir.main_function(mod).params[0]) == spec.dtype
