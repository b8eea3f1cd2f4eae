from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress.errors import DataError
from tvm_compress.tensors import TensorSpec, check_samples, join_samples

IMAGE = TensorSpec("image", (1, 2, 3), "float32")
AGE = TensorSpec("age", (1, 1), "float32")
WORDS = TensorSpec("words", (4,), "int32")
LEVEL = TensorSpec("level", (), "float32")


def zeros(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape, dtype)


@given(count=st.integers(1, 5))
def test_samples_along_the_batch_and_back(count: int) -> None:
    x = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    samples = check_samples([IMAGE], x)
    assert list(samples) == ["image"]
    assert samples["image"].shape == (count, 1, 2, 3)
    assert samples["image"].flags.c_contiguous
    np.testing.assert_array_equal(join_samples(samples)["image"], x)


def test_one_sample_without_a_batch() -> None:
    words = np.arange(4, dtype=np.int32)
    samples = check_samples([WORDS], words)
    assert samples["words"].shape == (1, 4)
    np.testing.assert_array_equal(join_samples(samples)["words"], words)


def test_all_inputs_hold_the_same_number_of_samples() -> None:
    samples = check_samples([IMAGE, AGE], {"age": zeros(3, 1), "image": zeros(3, 2, 3)})
    # In the order of the network's inputs, whatever the dict's order.
    assert {name: a.shape for name, a in samples.items()} == {
        "image": (3, 1, 2, 3),
        "age": (3, 1, 1),
    }
    assert list(samples) == ["image", "age"]


def test_an_input_without_a_batch_takes_one_sample() -> None:
    samples = check_samples(
        [IMAGE, WORDS], {"image": zeros(1, 2, 3), "words": zeros(4, dtype="i4")}
    )
    assert samples["words"].shape == (1, 4)
    with pytest.raises(DataError, match=r"image has the shape \(2, 2, 3\); expected \(1, 2, 3\)"):
        check_samples([IMAGE, WORDS], {"image": zeros(2, 2, 3), "words": zeros(4, dtype="i4")})


def test_memory_order_does_not_matter() -> None:
    x = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    np.testing.assert_array_equal(check_samples([IMAGE], x)["image"][:, 0], x)


@pytest.mark.parametrize(
    ("specs", "inputs", "message"),
    [
        (
            [IMAGE, AGE],
            zeros(1, 2, 3),
            "One array was given for 2 inputs; expected a dict with image, age.",
        ),
        ([IMAGE], {"picture": zeros(1, 2, 3)}, "There is no input picture; expected image."),
        ([IMAGE, AGE], {"age": zeros(1, 1)}, "The input image is missing; expected image, age."),
        (
            [IMAGE, AGE],
            {"age": zeros(2, 1), "image": zeros(3, 2, 3)},
            "The inputs hold different numbers of samples (image 3, age 2).",
        ),
        (
            [IMAGE],
            zeros(1, 2, 3, dtype="float64"),
            'The input image is float64; expected float32: convert it with .astype("float32").',
        ),
        (
            [IMAGE],
            zeros(5, 2, 3, dtype="uint8"),
            'The input image is uint8; expected float32: convert it with .astype("float32").',
        ),
        (
            [IMAGE],
            zeros(0, 2, 3),
            "The input image has the shape (0, 2, 3); expected (1, 2, 3).",
        ),
        ([IMAGE], zeros(2, 3), "The input image has the shape (2, 3); expected (1, 2, 3)."),
        ([IMAGE], np.float32(3), "The input image has the shape (); expected (1, 2, 3)."),
        ([LEVEL], zeros(3), "The input level has the shape (3,); expected ()."),
        (
            [IMAGE],
            {"image": zeros(2, 2, 3), "seed": np.float32(1)},
            "There is no input seed; expected image.",
        ),
        (
            [IMAGE],
            {"image": zeros(2, 2, 3), "mask": zeros(2, 2, 3)},
            "There is no input mask; expected image.",
        ),
    ],
)
def test_what_is_wrong_is_said(specs: list[TensorSpec], inputs: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_samples(specs, inputs)
    assert str(caught.value) == message


def test_lists_are_arrays_too() -> None:
    with pytest.raises(DataError, match="is float64"):
        check_samples([AGE], [[1.0]])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stacked", "joined"),
    [
        ((1,), ()),
        ((3,), (3,)),
        ((1, 5), (5,)),
        ((3, 1), (3,)),
        ((1, 4, 7), (4, 7)),
        ((3, 1, 7), (3, 7)),
    ],
)
def test_outputs_of_samples_are_joined(stacked: tuple[int, ...], joined: tuple[int, ...]) -> None:
    values = np.arange(np.prod(stacked), dtype=np.int8).reshape(stacked)
    result = join_samples({"y": values})["y"]
    assert isinstance(result, np.ndarray)
    assert result.shape == joined
    # Nothing is lost, and the order stays.
    np.testing.assert_array_equal(result.reshape(-1), values.reshape(-1))
