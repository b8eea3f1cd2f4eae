"""Arrays in files: inputs, training data and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError
from tvm_compress.files import write_whole
from tvm_compress.tensors import TensorSpec

__all__ = ["expected_inputs", "random_inputs", "read_inputs", "read_training", "write_arrays"]

_LABELS = "y"


def _read(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read ``.npy`` or ``.npz``, told apart by their bytes; pickles are refused."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is a folder; expected a .npy or .npz file.")
    try:
        # The file is closed here, and an .npz reads its arrays when they are asked for.
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files}
    except (ValueError, EOFError, OSError, KeyError) as error:
        raise _unreadable(path) from error
    except Exception as error:  # zipfile and zlib have exceptions of their own
        if type(error).__name__ in {"BadZipFile", "error"}:
            raise _unreadable(path) from error
        raise


def _unreadable(path: Path) -> DataError:
    return DataError(
        f"{path} is damaged, holds Python objects or is neither .npy nor .npz; expected arrays of "
        "numbers written by numpy.save or numpy.savez."
    )


def expected_inputs(specs: Sequence[TensorSpec]) -> str:
    """Say what a network takes.

    >>> expected_inputs([TensorSpec("x", (1, 3), "float32")])
    'x: float32 (1, 3)'
    """
    return "; ".join(f"{spec.name}: {spec.dtype} {spec.shape}" for spec in specs)


def read_inputs(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read one array (``.npy``) or arrays by input name (``.npz``).

    Raises:
        DataError: the file is missing, damaged or of another format.
    """
    content = _read(path)
    # One array in an .npz with the name that numpy gives it is the one input.
    if isinstance(content, dict) and list(content) == ["arr_0"]:
        return content["arr_0"]
    return content


def read_training(
    path: Path, *, labels: bool = True
) -> tuple[NDArray[Any] | dict[str, NDArray[Any]], NDArray[Any] | None]:
    """Read an ``.npz`` with labels ``y`` and samples ``x``, or one array for each input's name.

    Args:
        path: of the file.
        labels: whether there must be labels; else they may be missing, and are None then.

    Raises:
        DataError: the file is missing, damaged or of another format, or lacks an array.
    """
    content = _read(path)
    lacking = not isinstance(content, dict) or not content.keys() - {_LABELS}
    if not isinstance(content, dict) or lacking or (labels and _LABELS not in content):
        found = f"the arrays {', '.join(content)}" if isinstance(content, dict) else "one array"
        raise DataError(
            f"{path} holds {found}; expected an .npz with samples x (or one array for each input's "
            "name) and labels y: numpy.savez(path, x=x, y=y)."
        )
    targets = content.pop(_LABELS, None)
    return (content["x"] if list(content) == ["x"] else content), targets


def random_inputs(specs: Sequence[TensorSpec], seed: int) -> dict[str, NDArray[Any]]:
    """Make inputs: standard normal floats, integers over their whole range, random booleans."""
    generator = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            made[spec.name] = generator.integers(
                info.min, info.max, spec.shape, dtype, endpoint=True
            )
        elif dtype.kind == "b":
            made[spec.name] = generator.integers(0, 2, spec.shape).astype(dtype)
        else:
            made[spec.name] = generator.standard_normal(spec.shape).astype(dtype)
    return made


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz``, whole or not at all.

    Raises:
        OptionError: the path is a folder, or its folder does not exist.
    """
    write_whole(path, lambda stream: np.savez(stream, allow_pickle=False, **dict(arrays)))
