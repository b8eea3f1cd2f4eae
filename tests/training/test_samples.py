"""What a user may give as data, and what each mistake is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tvm_compress.errors import DataError
from tvm_compress.tensors import TensorSpec
from tvm_compress.training.samples import (
    check_labels,
    check_samples,
    check_targets,
)

X = TensorSpec("x", (1, 4, 2), "float32")
STATE = TensorSpec("state", (2, 3), "float32")
Y = TensorSpec("y", (1, 3), "float32")
INPUT = np.zeros((5, 4, 2), "float32")


def fail(data: Any, message: str, specs: tuple[TensorSpec, ...] = (X,)) -> None:
    with pytest.raises(DataError) as caught:
        check_samples("training data", data, specs)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(5, 4, 2), (5, 1, 4, 2)])
def test_batch_axis_of_the_ir_may_be_left_out(shape: tuple[int, ...]) -> None:
    x = np.arange(40, dtype="float32").reshape(shape)
    samples = check_samples("data", (x, np.arange(5)), (X,))
    assert len(samples) == 5
    inputs, targets = samples.batch(np.array([3, 1]))
    assert inputs[0].shape == (2, 1, 4, 2)
    np.testing.assert_array_equal(inputs[0].numpy().reshape(2, 8), x.reshape(5, 8)[[3, 1]])
    assert targets.tolist() == [3, 1]  # type: ignore[union-attr]


def test_several_inputs_and_targets_by_name() -> None:
    state = np.ones((5, 2, 3), "float32")
    data = {"state": state, "x": INPUT}, {"a": np.arange(5), "b": np.zeros((5, 2))}
    inputs, targets = check_samples("data", data, (X, STATE)).batch(np.array([4]))
    assert [tuple(x.shape) for x in inputs] == [(1, 1, 4, 2), (1, 2, 3)]
    assert isinstance(targets, dict)
    assert targets["a"].tolist() == [4]
    assert tuple(targets["b"].shape) == (1, 2)


def test_form_of_the_data() -> None:
    fail(
        INPUT,
        "The training data is a ndarray; expected a pair (x, y) of arrays: the inputs and their "
        "targets.",
    )
    fail((INPUT, {}), "The training data has no targets; expected an array of one target a sample.")
    fail((INPUT[:0], np.zeros(0)), "The training data has no samples; expected at least one.")


def test_names_of_the_inputs() -> None:
    both = (X, STATE)
    fail(
        (INPUT, np.zeros(5)),
        "The training data gives one array for 2 inputs; expected a dict with x, state.",
        both,
    )
    fail(
        ({"x": INPUT, "z": INPUT}, np.zeros(5)),
        "The training data gives the input z, which there is not; expected x, state.",
        both,
    )
    fail(
        ({"x": INPUT}, np.zeros(5)),
        "The training data does not give the input state; expected x, state.",
        both,
    )


@pytest.mark.parametrize("shape", [(5, 2, 4), (5, 8), (4, 2), (5,), (), (5, 2, 4, 2)])
def test_shape_of_an_input(shape: tuple[int, ...]) -> None:
    fail(
        (np.zeros(shape, "float32"), np.zeros(5)),
        f"The input x of the training data has the shape {shape}; expected (N, 4, 2) for N "
        "samples.",
    )


def test_a_first_axis_that_is_no_batch_has_to_be_given() -> None:
    fail(
        (np.zeros((5, 3), "float32"), np.zeros(5)),
        "The input state of the training data has the shape (5, 3); expected (N, 2, 3) for N "
        "samples.",
        (STATE,),
    )


def test_dtype_of_an_input() -> None:
    fail(
        (INPUT.astype("float64"), np.zeros(5)),
        "The input x of the training data is float64; expected float32: convert it with "
        '.astype("float32").',
    )


@pytest.mark.parametrize(("y", "length"), [(np.zeros(4), "4"), (np.zeros(()), "no")])
def test_lengths(y: Any, length: str) -> None:
    fail(
        (INPUT, y),
        f"The target of the training data has {length} samples and the input x 5; expected as "
        "many of both.",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    x = INPUT.copy()
    x[2, 1] = value
    end = (
        " of the training data holds 2 values of 40 that are NaN or infinite; expected finite "
        "numbers: remove these samples."
    )
    fail((x, np.zeros(5)), "The input x" + end)
    y = np.zeros((5, 8))
    y[1, 2:4] = value
    fail((INPUT, {"mask": y}), "The target mask" + end)


def labels(y: Any, output: tuple[int, ...] = (1, 3)) -> Any:
    return check_labels("data", check_samples("data", (INPUT, y), (X,)), output).targets[""]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_labels_of_any_integer_dtype(dtype: str) -> None:
    y = labels(np.array([0, 2, 1, 0, 2], dtype), (1, 3, 1, 1))
    assert y.dtype == np.int64
    assert y.tolist() == [0, 2, 1, 0, 2]
    assert labels(np.zeros((5, 7), dtype), (1, 7, 3)).shape == (5, 7)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            np.zeros(5, "float32"),
            "The labels of the data are float32; expected integers for the loss cross_entropy: "
            "give the class of each sample, or use the loss mse.",
        ),
        (
            np.zeros((5, 3), "int64"),
            "The labels of the data have the shape (5, 3); expected (N,) for N samples: the class "
            "of each, not one column a class.",
        ),
        (
            np.array([0, 1, 2, 3, 0]),
            "The labels of the data go from 0 to 3; expected 0 to 2, for the network has 3 "
            "classes.",
        ),
        (
            np.array([0, -1, 2, 1, 0]),
            "The labels of the data go from -1 to 2; expected 0 to 2, for the network has 3 "
            "classes.",
        ),
        (
            {"a": np.zeros(5, int)},
            "The data gives targets by name; expected one array for the loss cross_entropy: give "
            "a function as the loss to use several.",
        ),
    ],
)
def test_wrong_labels(y: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        labels(y)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_targets_take_the_output_s_shape_and_dtype(shape: tuple[int, ...], dtype: str) -> None:
    samples = check_samples("data", (INPUT, np.ones(shape, dtype)), (X,))
    y = check_targets("data", samples, Y).targets[""]
    assert y.shape == (5, 1, 3)
    assert y.dtype == np.float32


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            np.zeros((5, 3), "int32"),
            "The targets of the data are int32; expected float32 for the loss mse: convert them "
            'with .astype("float32").',
        ),
        (
            np.zeros((5, 4)),
            "The targets of the data have the shape (5, 4); expected (N, 3) for N samples, as the "
            "output y has.",
        ),
        (
            {"a": np.zeros((5, 3))},
            "The data gives targets by name; expected one array for the loss mse: give a function "
            "as the loss to use several.",
        ),
    ],
)
def test_wrong_targets(y: Any, message: str) -> None:
    samples = check_samples("data", (INPUT, y), (X,))
    with pytest.raises(DataError) as caught:
        check_targets("data", samples, Y)
    assert str(caught.value) == message
