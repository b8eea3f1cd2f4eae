from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

from tests.targets.mcu.nets import Net, assert_close, const, network, normal, shared, stock_tvm
from tvm_compress import edge, ir
from tvm_compress.layouts import Bank, Block, DenseCodes, GapCodes
from tvm_compress.ops import CODEBOOK, codebook
from tvm_compress.passes.bank_prune import from_rows, keep_in_banks, to_rows
from tvm_compress.passes.block_prune import keep_blocks
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.geometry import geometry_of
from tvm_compress.targets.mcu.lower import LoweredLayer, choose_layout, lower
from tvm_compress.targets.mcu.weights import (
    Dense,
    PackedBanks,
    PackedBlocks,
    PackedCodes,
    PackedGaps,
    stream_order,
)

Array = NDArray[Any]
op = relax.op
X = (1, 3, 6, 6)


def conv(net: Net, x: Any, name: str = "", seed: int = 0, outputs: int = 4) -> Any:
    inputs = edge.static_shape(x)[1]  # type: ignore[index]
    w = const(normal(outputs, inputs, 3, 3, seed=seed))
    return net(op.nn.conv2d(x, w, padding=1), name)


def calls(mod: tvm.IRModule) -> list[str]:
    """The names of the functions that main calls, in order."""
    return [
        str(binding.value.args[0].name_hint)
        for binding in ir.bindings(ir.main_function(mod))
        if edge.op_name(binding.value) == "relax.call_tir"
    ]


def lowered(mod: tvm.IRModule) -> tuple[tvm.IRModule, dict[str, LoweredLayer]]:
    """Lower, and hold the lowered module, run by stock TVM, to the reference."""
    function = ir.main_function(mod)
    inputs = [
        normal(*(edge.static_shape(p) or ()), seed=i + 10) for i, p in enumerate(function.params)
    ]
    names = [edge.var_name(p) for p in function.params]
    expected = reference.run(mod, dict(zip(names, inputs, strict=True)))
    result, layers = lower(mod)
    for actual, (_, wanted) in zip(stock_tvm(result, *inputs), expected.items(), strict=True):
        assert_close(actual, wanted, 1e-5)
    return result, layers


# What follows one sum and belongs into its kernel.
TAILS: dict[str, Callable[[Net, Any], Any]] = {
    "nothing": lambda net, y: y,
    "bias": lambda net, y: net(op.add(y, const(normal(4, 1, 1)))),
    "bias in front": lambda net, y: net(op.add(const(normal(4, 1, 1)), y)),
    "scalar": lambda net, y: net(op.add(y, const(0.3))),
    "relu": lambda net, y: net(op.nn.relu(y)),
    "clip": lambda net, y: net(op.clip(y, -0.4, 0.6)),
    "leaky relu": lambda net, y: net(op.nn.leakyrelu(y, 0.1)),
    "sigmoid": lambda net, y: net(op.sigmoid(y)),
    "tanh": lambda net, y: net(op.tanh(y)),
    "negative": lambda net, y: net(op.negative(y)),
    "absolute": lambda net, y: net(op.abs(y)),
    "exponential": lambda net, y: net(op.exp(y)),
    "from a scalar": lambda net, y: net(op.subtract(const(1.0), y)),
    "from a tensor": lambda net, y: net(op.subtract(const(normal(6, 6)), y)),
    "into a tensor": lambda net, y: net(op.divide(const(normal(1, 4, 1, 1)), y)),
    "quotient": lambda net, y: net(op.divide(y, const(normal(4, 6, 6) + 3))),
    "maximum": lambda net, y: net(op.maximum(y, const(normal(6, 1)))),
    "minimum": lambda net, y: net(op.minimum(y, const(0.1))),
    "chain": lambda net, y: net(
        op.multiply(
            net(op.sigmoid(net(op.nn.relu(net(op.add(y, const(normal(4, 1, 1)))))))),
            const(normal(1, 1, 6, 6)),
        )
    ),
    "hard swish's gate": lambda net, y: net(
        op.multiply(net(op.clip(net(op.add(y, const(3.0))), 0.0, 6.0)), const(1 / 6))
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_what_follows_a_sum_is_in_its_kernel(name: str) -> None:
    mod = network({"x": X}, lambda net, x: TAILS[name](net, conv(net, x)))
    result, layers = lowered(mod)
    assert len(calls(result)) == 1
    assert [layer.kind for layer in layers.values() if layer.name in layers][:1] == ["conv2d"]


@pytest.mark.parametrize("name", ["bias", "relu", "chain"])
def test_a_product_takes_its_tail_too(name: str) -> None:
    def describe(net: Net, x: Any) -> Any:
        y = net(op.matmul(x, const(normal(5, 6))))
        y = net(op.add(y, const(normal(6))))
        return net(op.nn.relu(y)) if name != "bias" else y

    result, layers = lowered(network({"x": (1, 4, 6, 5)}, describe))
    assert len(calls(result)) == 1
    assert {layer.kind for layer in layers.values()} == {"matmul"}


def test_a_residual_is_an_operand_of_the_second_convolution() -> None:
    def describe(net: Net, x: Any) -> Any:
        first = net(op.nn.relu(conv(net, x, "first")))
        second = conv(net, first, "second", seed=1)
        return net(op.nn.relu(net(op.add(second, first))))

    result, layers = lowered(network({"x": X}, describe))
    assert len(calls(result)) == 2
    assert len({layer.weight for layer in layers.values()}) == 2


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_sums_the_later_takes_the_earlier(swapped: bool) -> None:
    def describe(net: Net, x: Any) -> Any:
        first, second = conv(net, x, "first"), conv(net, x, "second", seed=1)
        return net(op.subtract(*((second, first) if swapped else (first, second))))

    result, layers = lowered(network({"x": X}, describe))
    assert len(calls(result)) == 2
    assert "first" in layers
    assert [layers[n].weight for n in layers if n != "first"][-1] == "second_weight"


def test_the_earlier_sum_keeps_its_own_tail() -> None:
    def describe(net: Net, x: Any) -> Any:
        first, second = conv(net, x, "first"), conv(net, x, "second", seed=1)
        first = net(op.nn.relu(first))
        return net(op.nn.relu(net(op.multiply(first, second))))

    result, _ = lowered(network({"x": X}, describe))
    assert len(calls(result)) == 2


# What must not be in a kernel, and how many steps there are then.
APART: dict[str, tuple[Callable[[Net, Any], Any], int]] = {
    "used twice": (lambda net, y: net(op.add(net(op.nn.relu(y)), net(op.tanh(y)))), 2),
    "used twice by one operator": (lambda net, y: net(op.multiply(y, y)), 2),
    "an output": (lambda net, y: [y, net(op.nn.relu(y))], 2),
    "given out twice": (lambda net, y: [y, y], 1),
    "a larger result": (lambda net, y: net(op.add(y, const(normal(2, 4, 6, 6)))), 2),
    "no operator of one element": (lambda net, y: net(op.nn.softmax(y, axis=1)), 2),
    "another shape": (lambda net, y: net(op.nn.relu(net(op.reshape(y, (1, 144))))), 2),
}


@pytest.mark.parametrize("name", APART)
def test_nothing_is_fused_that_others_need(name: str) -> None:
    tail, steps = APART[name]
    mod = network({"x": X}, lambda net, x: tail(net, conv(net, x)))
    result, layers = lowered(mod)
    assert len(calls(result)) == steps
    assert {layer.weight for layer in layers.values()} == {"conv2d_weight"}


def test_a_tensor_without_axes_is_an_operand() -> None:
    mod = network({"x": X, "s": ()}, lambda net, x, s: net(op.multiply(conv(net, x), s)))
    result, _ = lowered(mod)
    assert len(calls(result)) == 1


def test_an_input_that_is_broadcast_is_an_operand() -> None:
    mod = network(
        {"x": (2, 3, 6, 6), "e": (2, 1, 1, 6)},
        lambda net, x, e: net(op.add(conv(net, x), e)),
    )
    result, _ = lowered(mod)
    assert len(calls(result)) == 1


def test_only_float32_has_kernels() -> None:
    mod = network(
        {"x": ((1, 4), "float64")}, lambda net, x: net(op.matmul(x, const(normal(4, 3), "float64")))
    )
    _, layers = lower(mod)
    assert layers == {}
    x = normal(1, 4).astype(np.float64)
    (y,) = stock_tvm(lower(mod)[0], x)
    np.testing.assert_allclose(y, reference.run(mod, x)["y"], rtol=1e-12)


def test_a_weight_that_is_an_input_has_no_kernel() -> None:
    mod = network({"x": (2, 4), "w": (4, 3)}, lambda net, x, w: net(op.matmul(x, w)))
    _, layers = lowered(mod)
    assert layers == {}


def test_layers_are_known_by_the_variable_that_the_call_is_bound_to() -> None:
    def describe(net: Net, x: Any) -> Any:
        deep = net(op.nn.conv2d(x, const(normal(3, 1, 3, 3)), groups=3), "deep")
        deep = net(op.nn.relu(deep), "deep_relu")
        flat = net(op.reshape(deep, (1, 48)), "flat")
        return net(op.matmul(flat, const(normal(48, 2))), "product")

    result, layers = lowered(network({"x": X}, describe, outputs=["scores"]))
    bound = [
        edge.var_name(b.var)
        for b in ir.bindings(ir.main_function(result))
        if edge.op_name(b.value) == "relax.call_tir"
    ]
    assert [layers[name].kind for name in bound] == ["depthwise_conv2d", "matmul"]
    assert bound == ["deep_relu", "scores"]
    assert [layers[name].layout for name in bound] == ["dense", "dense"]
    assert [layers[name].weight for name in bound] == ["deep_weight", "product_weight"]
    assert [layers[name].macs for name in bound] == [3 * 16 * 9, 96]


def test_a_weight_may_serve_two_layers() -> None:
    def describe(net: Net, x: Any) -> Any:
        w = net(shared((5, 5)), "twice")
        first = net(op.nn.relu(net(op.matmul(x, w), "a")))
        return net(op.matmul(first, w), "b")

    result, layers = lowered(network({"x": (3, 5)}, describe))
    assert len(calls(result)) == 2
    assert {layer.weight for layer in layers.values()} == {"twice"}


def test_a_codebook_whose_first_centroid_is_no_zero() -> None:
    codes = np.zeros((40, 30), np.uint8)
    codes[3, 5] = 1
    weight = codebook(edge.constant(codes), const([0.25, -1.5]))
    mod = network({"x": (2, 40)}, lambda net, x: net(op.matmul(x, net(weight, "w"))))
    _, layers = lowered(mod)
    # gap_codes would take a third of the bytes, and read code 0 as zero.
    assert {layer.layout for layer in layers.values()} == {"dense_codes"}


# -- layouts --------------------------------------------------------------------------------------


def weight_bytes(source: Any) -> int:
    return sum(int(o.value.nbytes) for o in source.operands())


def geometry_for(shape: tuple[int, ...], dtype: str) -> Any:
    """Of a product with a vector, or of a convolution with as many groups as its shape asks for."""
    w = relax.Var("w", relax.TensorType(shape, dtype))
    out = "int32" if dtype == "int8" else "float32"
    if len(shape) == 2:
        x = relax.Var("x", relax.TensorType((1, shape[0]), dtype))
        call = relax.BlockBuilder().normalize(op.matmul(x, w, out_dtype=out))
    else:
        groups = max(1, shape[0] // shape[1])
        x = relax.Var("x", relax.TensorType((1, groups * shape[1], 5, 5), dtype))
        call = op.nn.conv2d(x, w, groups=groups, out_dtype=out)
        call = relax.BlockBuilder().normalize(call)
    return geometry_of(call)


def candidates(parameter: ir.Parameter, geometry: Any) -> dict[str, int]:
    """Bytes in flash, centroids included, of every way to store a weight."""

    def rows(array: Array) -> Array:
        matrix = array.T if geometry.rank == 0 else array
        return np.ascontiguousarray(matrix.reshape(matrix.shape[0], -1))

    gaps: list[PackedGaps] = []
    if parameter.codes is None:
        matrix = rows(parameter.value)
        ordered = stream_order(matrix, geometry)
        for gap_bits in range(1, 9):
            values = GapCodes.pack_values(ordered, gap_bits)
            gaps.append(PackedGaps(values, values.values))  # type: ignore[arg-type]
        found: list[Any] = [Dense(matrix), PackedBlocks(Block.pack(ordered))]
    else:
        codes = rows(parameter.codes)
        bits = max(1, int(codes.max()).bit_length())
        centroids = parameter.centroids[: 1 << bits]  # type: ignore[index]
        ordered = stream_order(codes, geometry)
        found = [Dense(rows(parameter.value)), PackedCodes(DenseCodes.pack(codes, bits), centroids)]
        if bits <= 4:
            found.append(PackedBanks(Bank.pack(ordered), centroids))
        for gap_bits in range(1, 9):
            gaps.append(PackedGaps(GapCodes.pack(ordered, gap_bits, bits), centroids))
    smallest = min(gaps, key=weight_bytes)
    return {source.layout: weight_bytes(source) for source in (*found, smallest)}


_SHAPES = [(8, 4, 3, 3), (1, 1, 1, 1), (64, 30), (16, 1, 3, 3), (3, 500), (2, 2), (8, 64, 3, 3)]


@settings(max_examples=80)
@given(
    shape=st.sampled_from(_SHAPES),
    bits=st.integers(0, 8),
    zeros=st.floats(0, 1),
    block=st.sampled_from([1, 4]),
    integers=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_layout_is_the_smallest(
    shape: tuple[int, ...], bits: int, zeros: float, block: int, integers: bool, seed: int
) -> None:
    dtype = "int8" if integers else "float32"
    if bits:
        weight = shared(shape, bits, seed, zeros)
        codes, centroids = (edge.constant_value(arg) for arg in weight.args)
        if integers:
            centroids = np.clip(np.round(centroids * 40), -127, 127).astype(np.int8)
        parameter = ir.Parameter("w", centroids[codes], codes, centroids)
    else:
        value = normal(*shape, seed=seed)
        rows = to_rows(value, 1 if len(shape) == 2 else 0)
        kept = np.random.default_rng(seed).random(rows.shape)[:, ::block].repeat(block, axis=1)
        rows[kept[:, : rows.shape[1]] < zeros] = 0
        value = from_rows(rows, shape, 1 if len(shape) == 2 else 0)
        parameter = ir.Parameter("w", (value * 40).astype(dtype) if integers else value)
    geometry = geometry_for(shape, dtype)
    source = choose_layout(parameter, geometry)
    sizes = candidates(parameter, geometry)
    # Entries of gap_codes of whole bytes may cost a tenth more, where that is still the smallest.
    others = min(size for name, size in sizes.items() if name != "gap_codes")
    assert weight_bytes(source) <= min(others, sizes["gap_codes"] * 1.10)
    if source.layout != "gap_codes":
        assert weight_bytes(source) == others
    again = choose_layout(parameter, geometry)
    assert again.layout == source.layout
    for one, two in zip(again.operands(), source.operands(), strict=True):
        assert one.value.tobytes() == two.value.tobytes()


@pytest.mark.parametrize("shape", [(64, 48, 3, 3), (64, 24, 1, 1), (320, 96), (24, 1, 4, 4)])
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_what_bank_prune_makes_is_laid_out_in_banks(shape: tuple[int, ...], keep: int) -> None:
    axis = 1 if len(shape) == 2 else 0
    rows = keep_in_banks(to_rows(normal(*shape), axis), keep, 16)
    weight = from_rows(rows, shape, axis)
    codes = np.where(weight == 0, 0, 1 + np.abs(weight * 3).astype(int).clip(0, 14))
    centroids = np.arange(16, dtype=np.float32)
    parameter = ir.Parameter("w", centroids[codes], codes.astype(np.uint8), centroids)
    geometry = geometry_for(shape, "float32")
    source = choose_layout(parameter, geometry)
    assert isinstance(source, PackedBanks)
    assert source.packed.keep == keep
    # Every byte is a weight: the order of banks is that of the pass.
    assert source.packed.nbytes == np.count_nonzero(weight)
    # At 4 of 16 entries of 7 bits would be a little smaller, but not those of a byte.
    gaps = candidates(parameter, geometry)["gap_codes"] * (1.10 if keep == 4 else 1)
    assert weight_bytes(source) < gaps


@pytest.mark.parametrize("dtype", ["float32", "int8", "int16"])
@pytest.mark.parametrize("shape", [(12, 24, 3, 3), (64, 20)])
def test_what_block_prune_makes_is_laid_out_in_blocks(shape: tuple[int, ...], dtype: str) -> None:
    axis = 1 if len(shape) == 2 else 0
    rows = keep_blocks(to_rows(normal(*shape), axis), 0.75, 4)
    value = from_rows(np.where(rows == 0, 0, np.sign(rows) + 30 * rows), shape, axis)
    parameter = ir.Parameter("w", value.astype(dtype))
    source = choose_layout(parameter, geometry_for(shape, "float32"))
    assert isinstance(source, PackedBlocks)
    assert source.packed.values.size == np.count_nonzero(rows)


def test_no_more_centroids_are_stored_than_codes_can_name() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (30, 30)).astype(np.uint8)
    centroids = np.linspace(0, 1, 256).astype(np.float32)
    parameter = ir.Parameter("w", centroids[codes], codes, centroids)
    x = relax.Var("x", relax.TensorType((1, 30), "float32"))
    w = relax.Var("w", relax.TensorType((30, 30), "float32"))
    geometry = geometry_of(relax.BlockBuilder().normalize(op.matmul(x, w)))
    source = choose_layout(parameter, geometry)  # type: ignore[arg-type]
    assert isinstance(source, PackedCodes)
    assert source.packed.bits == 2
    assert len(source.centroids) == 4


# -- shared weights of operators without a kernel -------------------------------------------------

WITHOUT_KERNEL: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "transposed convolution": (
        {"x": (1, 4, 5, 5)},
        lambda net, x: net(
            op.nn.conv2d_transpose(x, net(shared((4, 3, 3, 3)), "w"), strides=2, padding=1)
        ),
    ),
    "convolution of three axes": (
        {"x": (1, 2, 4, 4, 4)},
        lambda net, x: net(op.nn.conv3d(x, net(shared((3, 2, 2, 2, 2)), "w"))),
    ),
    "weight on the left": (
        {"x": (6, 3)},
        lambda net, x: net(op.matmul(net(shared((5, 6)), "w"), x)),
    ),
    "batched product": (
        {"x": (2, 3, 6)},
        lambda net, x: net(op.matmul(x, net(shared((2, 6, 5)), "w"))),
    ),
    "rows of a table": (
        {"i": ((4,), "int32")},
        lambda net, i: net(op.take(net(shared((9, 5)), "w"), i, axis=0)),
    ),
}


@pytest.mark.parametrize("name", WITHOUT_KERNEL)
def test_a_shared_weight_is_read_in_place_by_operators_without_a_kernel(name: str) -> None:
    inputs, describe = WITHOUT_KERNEL[name]
    mod = network(inputs, describe)
    values = np.array([8, 0, 3, 3], np.int32) if "i" in inputs else normal(*inputs["x"])
    result, layers = lower(mod)
    assert layers == {}
    assert len(calls(result)) == 1
    assert CODEBOOK not in result.script()
    (actual,) = stock_tvm(result, values)
    assert_close(actual, reference.run(mod, values)["y"], 1e-5)
