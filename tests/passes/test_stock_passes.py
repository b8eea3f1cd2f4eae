"""Our passes behind stock passes that take the canonical form apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tvm_compress import ir
from tvm_compress.passes import Prune, ShareWeights

STOCK = [
    relax.transform.FoldConstant,
    relax.transform.CanonicalizeBindings,
    relax.transform.ConvertToDataflow,
    relax.transform.EliminateCommonSubexpr,
]


@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: stock.__name__)
def test_weights_are_found_behind_a_stock_pass(stock: Any, digits_onnx: Any) -> None:
    mod = tc.load(digits_onnx)
    expected = tvm.transform.Sequential([Prune(0.5), ShareWeights(3)])(mod)
    passes = [stock(), Prune(0.5), stock(), ShareWeights(3)]
    found = tvm.transform.Sequential(passes)(mod)
    values = {tuple(w.parameter.value.shape): w.parameter for w in ir.weights(found).values()}
    assert len(values) == len(ir.weights(expected)) == 5
    for weight in ir.weights(expected).values():
        parameter = values[tuple(weight.parameter.value.shape)]
        assert parameter.shared
        np.testing.assert_array_equal(parameter.value, weight.parameter.value)
