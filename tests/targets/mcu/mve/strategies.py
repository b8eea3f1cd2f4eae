"""Random layers for kernels with MVE: geometries, weights, roundings and limits of any kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from tests.targets.mcu.dsp.layers import depthwise, geometry, layer
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.geometry import Geometry


def product(pixels: int, inputs: int, outputs: int) -> Geometry:
    """A product of (pixels, inputs) with (inputs, outputs)."""
    shapes = {"in_shape": (pixels, inputs), "out_shape": (pixels, outputs)}
    return geometry((1, pixels), inputs, outputs, rank=0, **shapes)


def relu(one: IntegerLayer) -> IntegerLayer:
    """The same layer with the zero point as its lower limit."""
    return replace(one, requantize=replace(one.requantize, low=one.requantize.zero_point))


@st.composite
def convolutions(draw: st.DrawFn) -> Geometry:
    """Small convolutions of any shape that :class:`VectorConvolution` takes."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 5), (4, 1), (1, 2), (5, 3)]))
    windowed = kernel != (1, 1)
    dilation = [draw(st.integers(1, 2)) if windowed else 1 for _ in range(2)]
    reach = [(kernel[i] - 1) * dilation[i] + 1 for i in range(2)]
    strides = draw(st.integers(1, reach[0] if windowed else 3)), draw(st.integers(1, 3))
    pads = [draw(st.integers(0, 2)) if windowed else 0 for _ in range(4)]
    size = tuple(
        max(1, reach[i] - pads[i] - pads[2 + i]) + draw(st.integers(0, 5)) for i in range(2)
    )
    return geometry(
        (size[0], size[1]),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        kernel,
        strides,
        (pads[0], pads[1]),
        (pads[2], pads[3]),
        (dilation[0], dilation[1]),
    )


@st.composite
def depthwise_convolutions(draw: st.DrawFn) -> Geometry:
    """Small depthwise convolutions of any shape that :class:`VectorDepthwise` takes."""
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    size = tuple(
        max(1, kernel[i] - pads[i] - pads[2 + i]) + draw(st.integers(0, 7)) for i in range(2)
    )
    channels = draw(st.integers(2, 40))
    return depthwise(
        (size[0], size[1]),
        max(channels, -(-16 // size[1])),
        kernel,
        strides=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        before=(pads[0], pads[1]),
        after=(pads[2], pads[3]),
    )


@st.composite
def layers(
    draw: st.DrawFn, geometries: st.SearchStrategy[Geometry], largest: tuple[int, ...] = (127, 254)
) -> IntegerLayer:
    """Layers of these geometries, with weights up to one of ``largest``, and one of -128."""
    one = layer(
        draw(geometries),
        np.random.default_rng(draw(st.integers(0, 1 << 16))),
        rounding=draw(st.sampled_from(["double", "single"])),
        uniform=draw(st.booleans()),
        low=draw(st.sampled_from([-128, -30])),
        largest=draw(st.sampled_from(largest)),
    )
    one.weights[0, 0] = -128
    return relu(one) if draw(st.booleans()) else one
