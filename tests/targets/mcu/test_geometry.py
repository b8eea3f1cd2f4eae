from __future__ import annotations

from math import prod
from typing import Any

import pytest
from tvm import relax, tirx

from tvm_compress.targets.mcu.geometry import Geometry, geometry_of


def var(name: str, *shape: Any, dtype: str = "float32") -> Any:
    return relax.Var(name, relax.TensorType(shape, dtype))


def typed(call: Any) -> Any:
    return relax.BlockBuilder().normalize(call)


def convolution(rank: int, x: tuple[int, ...], w: tuple[int, ...], **options: Any) -> Any:
    operator = relax.op.nn.conv1d if rank == 1 else relax.op.nn.conv2d
    return typed(operator(var("x", *x), var("w", *w), **options))


def test_a_convolution_of_two_axes() -> None:
    call = convolution(
        2,
        (2, 6, 9, 7),
        (4, 3, 3, 2),
        strides=[2, 1],
        padding=[1, 2, 3, 4],
        dilation=[2, 3],
        groups=2,
    )
    assert geometry_of(call) == Geometry(
        rank=2,
        channels_last=False,
        batch=2,
        groups=2,
        inputs=3,
        outputs=4,
        in_size=(9, 7),
        out_size=(5, 10),
        kernel=(3, 2),
        strides=(2, 1),
        dilation=(2, 3),
        padding=(1, 2),
        in_shape=(2, 6, 9, 7),
        out_shape=(2, 4, 5, 10),
    )


def test_the_last_axis_may_hold_the_channels() -> None:
    call = convolution(2, (1, 9, 7, 6), (4, 6, 3, 2), data_layout="NHWC", kernel_layout="OIHW")
    geometry = geometry_of(call)
    assert geometry is not None
    assert geometry.channels_last
    assert (geometry.inputs, geometry.outputs) == (6, 4)
    assert (geometry.in_size, geometry.out_size) == ((9, 7), (7, 6))


def test_one_axis_is_a_row() -> None:
    call = convolution(1, (1, 3, 10), (5, 3, 4), strides=2, padding=[3, 1], dilation=2)
    geometry = geometry_of(call)
    assert geometry is not None
    assert (geometry.rank, geometry.kernel, geometry.strides) == (1, (1, 4), (1, 2))
    assert (geometry.dilation, geometry.padding) == ((1, 2), (0, 3))
    assert (geometry.in_size, geometry.out_size) == ((1, 10), (1, 4))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 3, 4)])
def test_a_product_is_a_pixel_by_pixel_convolution(lead: tuple[int, ...]) -> None:
    geometry = geometry_of(typed(relax.op.matmul(var("x", *lead, 6), var("w", 6, 5))))
    assert geometry is not None
    assert (geometry.rank, geometry.inputs, geometry.outputs) == (0, 6, 5)
    assert geometry.in_size == geometry.out_size == (1, prod(lead))
    assert geometry.in_shape == (*lead, 6)
    assert geometry.out_shape == (*lead, 5)
    assert geometry.pointwise
    assert geometry.macs == prod(lead) * 30


def test_counts_of_weights_and_products() -> None:
    geometry = geometry_of(convolution(2, (2, 6, 5, 5), (4, 3, 3, 2), groups=2, padding=1))
    assert geometry is not None
    assert geometry.columns == 3 * 3 * 2
    assert geometry.macs == 2 * (5 * 6) * 4 * 18


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"strides": 2}, False),
        ({"padding": [0, 0, 0, 1]}, False),
        ({"padding": [1, 0, 0, 0]}, False),
        # Out as large as in, but each pixel sees its neighbour.
        ({"strides": 2, "padding": [0, 0, 5, 5]}, False),
        ({"dilation": 3}, True),
    ],
)
def test_what_is_pointwise(options: dict[str, Any], expected: bool) -> None:
    geometry = geometry_of(convolution(2, (1, 3, 5, 5), (4, 3, 1, 1), **options))
    assert geometry is not None
    assert geometry.pointwise is expected


def test_flattening_puts_all_pixels_in_a_row() -> None:
    geometry = geometry_of(convolution(2, (2, 3, 5, 7), (4, 3, 1, 1)))
    assert geometry is not None
    flat = geometry.flattened()
    assert flat.in_size == flat.out_size == (1, 35)
    assert flat.pointwise
    assert (flat.in_shape, flat.out_shape, flat.macs) == (
        geometry.in_shape,
        geometry.out_shape,
        geometry.macs,
    )


def test_what_has_no_geometry() -> None:
    x, w = var("x", 1, 3, 8, 8), var("w", 4, 3, 3, 3)
    batched = typed(relax.op.matmul(var("a", 2, 3, 4), var("b", 2, 4, 5)))
    assert geometry_of(batched) is None
    assert geometry_of(typed(relax.op.matmul(var("a", 4), var("b", 4)))) is None
    assert geometry_of(typed(relax.op.nn.relu(x))) is None
    assert geometry_of(x) is None
    hwio = relax.op.nn.conv2d(x, var("w", 3, 3, 3, 4), kernel_layout="HWIO")
    assert geometry_of(typed(hwio)) is None
    other = relax.op.nn.conv2d(x, w, out_layout="NHWC")
    assert geometry_of(typed(other)) is None
    size = tirx.Var("n", "int64")
    assert geometry_of(typed(relax.op.nn.conv2d(var("x", size, 3, 8, 8), w))) is None
