"""Random geometries for kernels with the DSP extension."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st

from tests.targets.mcu.dsp.layers import geometry
from tvm_compress.targets.mcu.geometry import Geometry


@st.composite
def geometries(
    draw: st.DrawFn, size: int, inputs: int, outputs: st.SearchStrategy[int]
) -> Geometry:
    """Convolutions with and without a window, of images up to ``size`` in height and width.

    There are up to ``inputs`` channels, or four times as many.
    """

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    window = draw(st.booleans())
    kernel = (number(1, 4), number(1, 4)) if window else (1, 1)
    strides = (number(1, kernel[0] if kernel != (1, 1) else 3), number(1, 3))
    dilation = (number(1, 2), number(1, 3))
    before, after = (
        ((number(0, kernel[0]), number(0, kernel[1])) if kernel != (1, 1) else (0, 0))
        for _ in range(2)
    )
    image = (number(1, size), number(1, size))
    assume(all(image[i] + before[i] + after[i] > (kernel[i] - 1) * dilation[i] for i in range(2)))
    channels = number(1, inputs) * draw(st.sampled_from([1, 4]))
    return geometry(image, channels, draw(outputs), kernel, strides, before, after, dilation)
