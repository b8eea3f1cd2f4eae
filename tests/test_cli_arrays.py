from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tvm_compress.cli import arrays
from tvm_compress.errors import DataError
from tvm_compress.tensors import TensorSpec


def damaged(path: Path, cut: Callable[[bytes], bytes]) -> None:
    path.write_bytes(cut(path.read_bytes()))


@pytest.mark.parametrize(
    "cut",
    [
        lambda data: b"",
        lambda data: b"hello",
        lambda data: data[: len(data) // 2],
        lambda data: data[:100] + bytes(60) + data[160:],
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_that_are_damaged(kind: str, cut: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    with path.open("wb") as stream:
        if kind == "npy":
            # Of version 1, whose header ends within 128 bytes.
            np.save(stream, np.zeros(200))
        else:
            np.savez_compressed(stream, x=np.random.default_rng(0).standard_normal(200))
    damaged(path, cut)
    with pytest.raises(DataError) as caught:
        arrays.read_inputs(path)
    assert str(caught.value) == (
        f"{path} is damaged, holds Python objects or is neither .npy nor .npz; expected arrays of "
        "numbers written by numpy.save or numpy.savez."
    )


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        arrays.read_inputs(path)
    with pytest.raises(DataError, match="does not exist or is a folder"):
        arrays.read_inputs(tmp_path)


def test_training_data_by_name_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    given = {"left": np.ones((4, 2)), "right": np.zeros((4, 3)), "y": np.arange(4)}
    np.savez(path, allow_pickle=False, **given)
    x, y = arrays.read_training(path)
    assert isinstance(x, dict)
    assert {name: a.shape for name, a in x.items()} == {"left": (4, 2), "right": (4, 3)}
    np.testing.assert_array_equal(y, np.arange(4))


def test_random_inputs_of_every_kind() -> None:
    specs = [
        TensorSpec("f", (1, 1000), "float32"),
        TensorSpec("h", (3,), "float16"),
        TensorSpec("i", (1, 5000), "int8"),
        TensorSpec("l", (2,), "int64"),
        TensorSpec("b", (64,), "bool"),
        TensorSpec("s", (), "float32"),
    ]
    made = arrays.random_inputs(specs, 0)
    assert {n: (a.shape, str(a.dtype)) for n, a in made.items()} == {
        s.name: (s.shape, s.dtype) for s in specs
    }
    assert abs(made["f"].std() - 1) < 0.1
    assert (made["i"].min(), made["i"].max()) == (-128, 127)
    assert 0 < made["b"].sum() < 64
