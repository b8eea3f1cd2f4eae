"""Operators of several activations: what they refuse."""

from __future__ import annotations

import pytest

from tests.quantised_nets import OP, X, dequantize, net, quantize
from tvm_compress.errors import UnsupportedError
from tvm_compress.passes import ToIntegers


def test_scales_of_quite_another_size() -> None:
    mod = net(lambda x: quantize(OP.add(dequantize(x, 1e6, 0), dequantize(x, 1.0, 0)), 1e-6, 0), X)
    with pytest.raises(UnsupportedError) as caught:
        ToIntegers()(mod)
    assert str(caught.value) == (
        "to-integers: the inputs of add have scales 1e+06 and 1, its output 1e-06; expected scales "
        "of less different size: quantise the network again."
    )
