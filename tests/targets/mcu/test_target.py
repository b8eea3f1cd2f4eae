"""Whole networks: this machine, two emulators and two compilers give one answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from benchmarks.frontends import judge_onnx
from examples.digits.data import DigitsSplit
from tests.targets.mcu.nets import Net, assert_close, const, network, normal, shared
from tvm_compress import edge
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.target import FirmwareArtifact, HostArtifact
from tvm_compress.tensors import input_specs

Array = NDArray[Any]
op = relax.op
BOARD = "cortex-m4"
TOOLCHAINS = ["zig", pytest.param("gnu", marks=pytest.mark.gnu)]


def compressed(mod: tvm.IRModule) -> tvm.IRModule:
    return ShareWeights(bits=4)(Prune(0.8)(mod))


def firmware(mod: tvm.IRModule, toolchain: str = "zig") -> FirmwareArtifact:
    built = tc.build(mod, board=BOARD, name="net", toolchain=toolchain)
    assert isinstance(built, FirmwareArtifact)
    return built


def host(mod: tvm.IRModule) -> HostArtifact:
    built = tc.build(mod, name="net")
    assert isinstance(built, HostArtifact)
    return built


def same_bytes(a: dict[str, Array], b: dict[str, Array]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes()


# -- the built-in network -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["dense", "compressed"])
def digits_mod(request: pytest.FixtureRequest, digits_onnx: Path) -> tvm.IRModule:
    mod = tc.load(digits_onnx)
    return mod if request.param == "dense" else compressed(mod)


def test_digits_on_this_machine_and_on_the_board(
    digits_mod: tvm.IRModule, digits: DigitsSplit
) -> None:
    x = digits.test_images[:20]
    expected = reference.run(digits_mod, x)
    here, there = host(digits_mod).run(x), firmware(digits_mod).run(x)
    same_bytes(here, there)
    for name, value in expected.items():
        assert_close(here[name], value)


def test_dense_digits_equal_onnxruntime(digits_onnx: Path, digits: DigitsSplit) -> None:
    built = host(tc.load(digits_onnx))
    for image in digits.test_images[:10, None]:
        (expected,) = judge_onnx(str(digits_onnx), [image])
        (actual,) = built.run(image).values()
        assert_close(actual, expected)


@pytest.mark.qemu
@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_digits_on_both_emulators(
    digits_mod: tvm.IRModule, digits: DigitsSplit, toolchain: str
) -> None:
    built = firmware(digits_mod, toolchain)
    x = digits.test_images[:3]
    unicorn, qemu = (built.run(x, engine=engine) for engine in ("unicorn", "qemu"))
    same_bytes(unicorn, qemu)
    same_bytes(unicorn, host(digits_mod).run(x))
    counts = [
        {layer.name: layer.instructions for layer in built.profile(x[:1], engine=engine).layers}
        for engine in ("unicorn", "qemu")
    ]
    assert counts[0] == counts[1]


def test_layers_and_sizes_of_digits(digits_mod: tvm.IRModule, digits: DigitsSplit) -> None:
    built = firmware(digits_mod)
    profile = built.profile(digits.test_images[:1])
    assert profile.instructions == sum(layer.instructions for layer in profile.layers)
    assert all(layer.instructions > 0 for layer in profile.layers)
    assert set(built.size.flash) == {"code", "weights", "constants"}
    assert set(built.size.ram) == {"arena", "inputs", "outputs", "static", "stack"}
    assert built.size.flash_bytes == sum(built.size.flash.values())
    assert built.size.ram_bytes == sum(built.size.ram.values())
    specs = built.firmware.model
    assert built.size.ram["inputs"] == sum(s.size_bytes for s in specs.inputs)
    assert built.size.ram["outputs"] == sum(s.size_bytes for s in specs.outputs)
    assert built.size.ram["arena"] == specs.arena_bytes


def test_compressed_digits_are_smaller_and_cheaper(digits_onnx: Path, digits: DigitsSplit) -> None:
    dense = tc.load(digits_onnx)
    before, after = firmware(dense), firmware(compressed(dense))
    assert after.size.flash["weights"] * 6 < before.size.flash["weights"]
    counts = [built.profile(digits.test_images[:1]).instructions for built in (before, after)]
    assert counts[1] < counts[0]


# -- MLPerf Tiny ----------------------------------------------------------------------------------

TINY = {"kws_dscnn": 1e-4, "vww_96": 1e-4, "ic_resnet8": 1e-4, "ad01": 1e-3}


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("form", ["dense", "compressed"])
@pytest.mark.parametrize("name", TINY)
def test_mlperf_tiny_networks(name: str, form: str, shared_data: Path) -> None:
    path = shared_data / "mlperf_tiny" / f"{name}_float.onnx"
    mod = tc.load(path)
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).random(spec.shape).astype(np.float32)
    x *= 255 if name == "ic_resnet8" else 1
    if form == "dense":
        (expected,) = judge_onnx(str(path), [x])
    else:
        mod = compressed(mod)
        (expected,) = reference.run(mod, x).values()
    here, board = host(mod), firmware(mod)
    on_board = board.run(x)
    same_bytes(here.run(x), on_board)
    (actual,) = on_board.values()
    assert_close(actual, expected, TINY[name])
    assert board.size.flash_bytes == sum(board.size.flash.values())


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.gnu
@pytest.mark.qemu
@pytest.mark.parametrize("name", TINY)
def test_mlperf_tiny_networks_by_other_tools(name: str, shared_data: Path) -> None:
    mod = compressed(tc.load(shared_data / "mlperf_tiny" / f"{name}_float.onnx"))
    (spec,) = input_specs(mod)
    x = np.random.default_rng(1).random(spec.shape).astype(np.float32)
    built = firmware(mod, "gnu")
    same_bytes(host(mod).run(x), built.run(x, engine="qemu"))
    counts = [
        [(layer.name, layer.instructions) for layer in built.profile(x, engine=engine).layers]
        for engine in ("unicorn", "qemu")
    ]
    assert counts[0] == counts[1]


# -- random networks ------------------------------------------------------------------------------


class _Drawn:
    """Adds layers to a network of shape (N, C, H, W), drawn one by one."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def weight(self, *shape: int) -> Any:
        seed = self.draw(st.integers(0, 999))
        scale = np.float32(1 / np.sqrt(np.prod(shape[1:])))
        kind = self.draw(st.sampled_from(["dense", "pruned", "shared", "pruned and shared"]))
        if "shared" in kind:
            bits = self.draw(st.integers(1, 8))
            return shared(shape, bits, seed, 0.8 if "pruned" in kind else 0.0)
        value = normal(*shape, seed=seed) * scale
        if kind == "pruned":
            value[np.random.default_rng(seed).random(shape) < 0.8] = 0
        return const(value)

    def convolution(self, net: Net, x: Any) -> Any:
        _, channels, height, width = edge.static_shape(x)  # type: ignore[misc]
        groups = channels if self.draw(st.booleans()) else 1
        kernel = [self.draw(st.integers(1, min(3, n))) for n in (height, width)]
        outputs = groups * self.draw(st.integers(1, 3)) if groups == 1 else groups
        w = net(self.weight(outputs, channels // groups, *kernel))
        x = net(
            op.nn.conv2d(
                x,
                w,
                strides=[self.draw(st.integers(1, 2)) for _ in range(2)],
                padding=[self.draw(st.integers(0, 2)) for _ in range(4)],
                groups=groups,
            )
        )
        if self.draw(st.booleans()):
            x = net(op.add(x, const(normal(outputs, 1, 1))))
        return x

    def pooling(self, net: Net, x: Any) -> Any:
        shape = edge.static_shape(x) or ()
        size = [self.draw(st.integers(1, min(3, n))) for n in shape[2:]]
        pool = op.nn.max_pool2d if self.draw(st.booleans()) else op.nn.avg_pool2d
        strides = [self.draw(st.integers(1, 2)) for _ in range(2)]
        return net(pool(x, size, strides))

    def activation(self, net: Net, x: Any) -> Any:
        return net(
            self.draw(
                st.sampled_from(
                    [
                        op.nn.relu,
                        op.sigmoid,
                        op.tanh,
                        lambda x: op.clip(x, -0.5, 1.0),
                        lambda x: op.nn.leakyrelu(x, 0.25),
                        lambda x: op.nn.softmax(x, axis=self.draw(st.integers(0, 3))),
                    ]
                )
            )(x)
        )

    def sum(self, net: Net, x: Any) -> Any:
        other = net(op.nn.relu(x)) if self.draw(st.booleans()) else x
        return net(self.draw(st.sampled_from([op.add, op.multiply, op.maximum]))(x, other))

    def residual(self, net: Net, x: Any) -> Any:
        channels = (edge.static_shape(x) or ())[1]
        w = net(self.weight(channels, channels, 3, 3))
        y = net(op.nn.conv2d(x, w, padding=1))
        y = net(op.nn.relu(y)) if self.draw(st.booleans()) else y
        return net(op.add(*((x, y) if self.draw(st.booleans()) else (y, x))))

    def join(self, net: Net, x: Any) -> Any:
        axis = self.draw(st.integers(1, 3))
        return net(op.concat([x, net(op.tanh(x))], axis=axis))

    def border(self, net: Net, x: Any) -> Any:
        widths = [0, 0, 0, 0] + [self.draw(st.integers(0, 2)) for _ in range(4)]
        return net(op.nn.pad(x, widths, pad_value=0.5))

    def transpose(self, net: Net, x: Any) -> Any:
        return net(op.permute_dims(x, [0, *self.draw(st.permutations([1, 2, 3]))]))

    def product(self, net: Net, x: Any) -> Any:
        width = (edge.static_shape(x) or ())[-1]
        return net(op.matmul(x, net(self.weight(width, self.draw(st.integers(1, 5))))))

    def reshape(self, net: Net, x: Any) -> Any:
        n, channels, height, width = edge.static_shape(x)  # type: ignore[misc]
        return net(op.reshape(x, (n, width, channels, height)))

    def mean(self, net: Net, x: Any) -> Any:
        return net(op.mean(x, axis=[self.draw(st.integers(1, 3))], keepdims=True))


STEPS = [
    *("convolution", "convolution", "pooling", "activation", "sum", "residual", "join"),
    *("border", "transpose", "product", "reshape", "mean"),
]


@st.composite
def networks(draw: st.DrawFn) -> tvm.IRModule:
    drawn = _Drawn(draw)
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
    outputs = draw(st.integers(1, 2))

    def describe(net: Net, x: Any) -> Any:
        seen = []
        for step in steps:
            x = getattr(drawn, step)(net, x)
            seen.append(x)
        return x if outputs == 1 else [x, seen[len(seen) // 2]]

    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 4)),
        *(draw(st.integers(3, 8)) for _ in "hw"),
    )
    return network({"x": shape}, describe)


@pytest.fixture(scope="module")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Random networks come once; their libraries need not stay on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.usefixtures("cache_of_its_own")
@settings(max_examples=40)
@given(networks())
def test_any_small_network_equals_the_reference(mod: tvm.IRModule) -> None:
    (spec,) = input_specs(mod)
    x = normal(*spec.shape, seed=5)
    expected = reference.run(mod, {"x": x})
    actual = host(mod).run({"x": x})
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert_close(actual[name], value)


def test_one_random_network_on_the_board() -> None:
    def describe(net: Net, x: Any) -> Any:
        x = net(op.nn.conv2d(x, net(shared((5, 2, 3, 3), 4, zeros=0.7)), padding=1))
        x = net(op.sigmoid(x))
        x = net(op.nn.softmax(net(op.mean(x, axis=[2])), axis=-1))
        return net(op.tanh(x))

    mod = network({"x": (1, 2, 7, 11)}, describe)
    x = normal(1, 2, 7, 11)
    same_bytes(host(mod).run(x), firmware(mod).run(x))
