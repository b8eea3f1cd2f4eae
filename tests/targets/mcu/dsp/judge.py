"""Kernels of layers run on the emulated core, and their bytes held to the definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.targets.mcu.dsp.layers import expected, pixels
from tests.targets.mcu.dsp.machine import assemble, call
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.depthwise import Depthwise
from tvm_compress.targets.mcu.geometry import Geometry

Kernel = Convolution | Depthwise


def rows_outside(g: Geometry) -> bool:
    """Whether some window reaches above or below the image: such rows are not in the model."""
    last = (g.out_size[0] - 1) * g.strides[0] - g.padding[0] + (g.kernel[0] - 1) * g.dilation[0]
    return g.padding[0] > 0 or last >= g.in_size[0]


def check(kernels: Sequence[Kernel], seed: int = 0) -> list[AssemblyFunction]:
    """Check bytes, bounds, alignment and cost of kernels; give their functions.

    The input and the output begin at odd addresses or end with the memory; the scratch memory is
    as large as the kernel says, and holds rubbish.
    """
    functions = [kernel.function() for kernel in kernels]
    codes = assemble({f"f{i}": f for i, f in enumerate(functions)})
    chance = np.random.default_rng(seed)
    for i, (kernel, function) in enumerate(zip(kernels, functions, strict=True)):
        layer, g = kernel.layer, kernel.layer.geometry
        code = codes[f"f{i}"]
        assert len(code) <= function.code_bytes
        x = pixels(g, chance)
        right = expected(layer, x)
        y = np.zeros(right.shape, np.int8)
        scratch = np.frombuffer(chance.bytes(kernel.scratch_bytes), np.uint8)
        for at_end in (True, False):
            called = call(code, [x, kernel.stream(), y, scratch], [2, 3], at_end=at_end, offset=1)
            np.testing.assert_array_equal(called.buffers[2], right, f"{g}, {kernel.layout}")
            # Skipped instructions of a clamp are not executed; the model counts them all.
            clamps = (layer.requantize.low > -128) + (layer.requantize.high < 127)
            if not rows_outside(g):
                skipped = function.instructions - called.instructions
                assert -0.01 * called.instructions <= skipped
                assert skipped <= 0.01 * called.instructions + clamps * 3 * right.size
    return functions
