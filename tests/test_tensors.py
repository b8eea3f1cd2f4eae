"""Names, shapes and dtypes of inputs and outputs, and the check of what a user gives."""

# TVMScript's annotations are calls, and a decorated class is a module: no type checker knows.
# mypy: disable-error-code="valid-type,no-untyped-def,index,misc,attr-defined,name-defined,type-arg"

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_compress.errors import DataError, UnsupportedError
from tvm_compress.tensors import TensorSpec, check_inputs, input_specs, output_specs


@I.ir_module
class Network:
    @R.function
    def main(a: R.Tensor((2, 3), "float32"), b: R.Tensor((), "int64")):
        with R.dataflow():
            y = R.add(a, a)
            z = R.astype(b, "uint8")
            R.output(y, z)
        return (y, z)


A = TensorSpec("a", (2, 3), "float32")
B = TensorSpec("b", (), "int64")
GOOD: dict[str, Any] = {"a": np.zeros((2, 3), np.float32), "b": np.int64(4)}


def test_specs_in_order() -> None:
    assert input_specs(Network) == (A, B)
    assert output_specs(Network) == (
        TensorSpec("y", (2, 3), "float32"),
        TensorSpec("z", (), "uint8"),
    )


def test_sizes() -> None:
    assert (A.size, A.size_bytes) == (6, 24)
    assert (B.size, B.size_bytes) == (1, 8)
    assert TensorSpec("c", (3, 0), "float32").size_bytes == 0


def test_dynamic_shapes_are_refused() -> None:
    @I.ir_module
    class Dynamic:
        @R.function
        def main(x: R.Tensor(("n", 3), "float32")):
            return x

    with pytest.raises(UnsupportedError) as caught:
        input_specs(Dynamic)
    assert str(caught.value) == (
        'x has the dynamic type R.Tensor((n, 3), dtype="float32"); expected a static shape: give '
        "it to load with shapes={...}."
    )


def test_what_is_no_tensor_is_refused() -> None:
    @I.ir_module
    class Shape:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            y = R.shape_of(x)
            return y

    with pytest.raises(UnsupportedError) as caught:
        output_specs(Shape)
    assert str(caught.value).startswith("y is ")
    assert str(caught.value).endswith(
        "; expected a tensor: let the network take and return tensors one by one."
    )


def test_good_inputs_come_back_by_name_and_contiguous() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
    checked = check_inputs((A, B), {"b": np.asarray(4), "a": turned})
    assert list(checked) == ["a", "b"]
    assert checked["a"].flags.c_contiguous and checked["b"].shape == ()
    np.testing.assert_array_equal(checked["a"], turned)
    one = check_inputs((A,), GOOD["a"])
    np.testing.assert_array_equal(one["a"], GOOD["a"])


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (GOOD["a"], "One array was given for 2 inputs; expected a dict with a, b."),
        (GOOD | {"c": 1}, "There is no input c; expected a, b."),
        ({"a": GOOD["a"]}, "The input b is missing; expected a, b."),
        (
            GOOD | {"a": np.zeros((2, 3))},
            'The input a is float64; expected float32: convert it with .astype("float32").',
        ),
        (
            GOOD | {"a": np.zeros((3, 2), np.float32)},
            "The input a has the shape (3, 2); expected (2, 3).",
        ),
        (GOOD | {"b": np.zeros(1, np.int64)}, "The input b has the shape (1,); expected ()."),
    ],
)
def test_bad_inputs(inputs: Any, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        check_inputs((A, B), inputs)
    assert str(caught.value) == sentence
