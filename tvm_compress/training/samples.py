"""The data of a fine-tuning: what a user may give, checked once, and cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor

from tvm_compress import qdq
from tvm_compress.errors import DataError
from tvm_compress.tensors import TensorSpec, check_classes, input_specs

__all__ = ["Samples", "check_inputs", "check_labels", "check_samples", "check_targets"]


@dataclass(frozen=True)
class Samples:
    """Inputs in the network's order and targets by name; the first axis is that of the samples.

    One array of targets has the name ``""``.
    """

    inputs: tuple[NDArray[Any], ...]
    targets: dict[str, NDArray[Any]]
    specs: tuple[TensorSpec, ...]

    def __len__(self) -> int:
        return len(self.inputs[0])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give all arrays by unique names."""
        named = {f"input {i}": array for i, array in enumerate(self.inputs)}
        return named | {f"target {name}": array for name, array in self.targets.items()}

    def batch(
        self,
        where: NDArray[np.int64],
        change: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]] | None = None,
    ) -> tuple[list[Tensor], Tensor | dict[str, Tensor]]:
        """Give the inputs (n, *shape of the IR) and the targets of some samples.

        ``change`` gets the inputs by name, copies in the form of the data.
        """
        named = {
            spec.name: array[where] for spec, array in zip(self.specs, self.inputs, strict=True)
        }
        if change is not None:
            named = change(named)
        inputs = [
            torch.from_numpy(named[spec.name].reshape(len(where), *spec.shape))
            for spec in self.specs
        ]
        targets = {name: torch.from_numpy(array[where]) for name, array in self.targets.items()}
        return inputs, targets.get("", targets)


def check_samples(what: str, data: Any, specs: Sequence[TensorSpec]) -> Samples:
    """Check inputs and the form of the targets.

    Args:
        what: how messages call the data.
        data: ``(x, y)``. ``x`` is one array, or arrays by input name; each is (N, *shape) with the
            shape of the IR, whose batch axis of 1 may be left out. ``y`` is one array of N
            targets, or several by name.
        specs: the inputs of the network.

    Raises:
        DataError: a wrong name, shape, dtype or length, no samples, or numbers that are not finite.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError(
            f"The {what} is a {type(data).__name__}; expected a pair (x, y) of arrays: the inputs "
            "and their targets."
        )
    x, y = data
    inputs = [_input(what, spec, array) for spec, array in _by_name(what, x, specs)]
    named = y if isinstance(y, Mapping) else {"": y}
    targets = {str(name): np.asarray(array) for name, array in named.items()}
    if not targets:
        raise DataError(f"The {what} has no targets; expected an array of one target a sample.")
    count = len(inputs[0])
    for label, array in [
        *((f"input {spec.name}", a) for spec, a in zip(specs, inputs, strict=True)),
        *((f"target {name}".strip(), a) for name, a in targets.items()),
    ]:
        if array.ndim == 0 or len(array) != count:
            length = len(array) if array.ndim else "no"
            raise DataError(
                f"The {label} of the {what} has {length} samples and the input {specs[0].name} "
                f"{count}; expected as many of both."
            )
        _check_finite(what, label, array)
    if count == 0:
        raise DataError(f"The {what} has no samples; expected at least one.")
    return Samples(tuple(inputs), targets, tuple(specs))


def check_inputs(
    mod: tvm.IRModule, inputs: NDArray[Any] | Mapping[str, NDArray[Any]]
) -> tuple[tvm.IRModule, Samples]:
    """Check inputs without targets; of a quantised network both become what takes real numbers.

    Raises:
        DataError: as :func:`check_samples`.
    """
    inputs, mod = qdq.real_inputs(mod, inputs), qdq.with_reals(mod)
    first = next(iter(inputs.values()), ()) if isinstance(inputs, Mapping) else inputs
    count = len(np.atleast_1d(np.asarray(first)))
    return mod, check_samples("inputs", (inputs, np.zeros(count)), input_specs(mod))


def _by_name(
    what: str, x: Any, specs: Sequence[TensorSpec]
) -> list[tuple[TensorSpec, NDArray[Any]]]:
    names = ", ".join(spec.name for spec in specs)
    if not isinstance(x, Mapping):
        if len(specs) != 1:
            raise DataError(
                f"The {what} gives one array for {len(specs)} inputs; expected a dict with {names}."
            )
        return [(specs[0], np.asarray(x))]
    known = {spec.name for spec in specs}
    for name in x:
        if name not in known:
            raise DataError(
                f"The {what} gives the input {name}, which there is not; expected {names}."
            )
    for name in known:
        if name not in x:
            raise DataError(f"The {what} does not give the input {name}; expected {names}.")
    return [(spec, np.asarray(x[spec.name])) for spec in specs]


def _input(what: str, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.dtype(spec.dtype):
        raise DataError(
            f"The input {spec.name} of the {what} is {array.dtype}; expected {spec.dtype}: convert "
            f'it with .astype("{spec.dtype}").'
        )
    if not _fits(array.shape, spec.shape):
        raise DataError(
            f"The input {spec.name} of the {what} has the shape {array.shape}; expected "
            f"{_expected(spec.shape)} for N samples."
        )
    return array


def _fits(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether (N, *rest) are samples of a shape, whose batch axis of 1 may be left out."""
    return given[1:] == shape or (shape[:1] == (1,) and len(given) > 0 and given[1:] == shape[1:])


def _expected(shape: tuple[int, ...]) -> str:
    rest = shape[1:] if shape[:1] == (1,) else shape
    return "(N" + "".join(f", {size}" for size in rest) + ("," if not rest else "") + ")"


def _check_finite(what: str, label: str, array: NDArray[Any]) -> None:
    # The extremes tell of NaN and of infinities without a mask as large as the data.
    if array.dtype.kind == "f" and array.size and not np.isfinite([array.min(), array.max()]).all():
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"The {label} of the {what} holds {count} values of {array.size} that are NaN or "
            "infinite; expected finite numbers: remove these samples."
        )


def _one_array(what: str, samples: Samples, loss: str) -> NDArray[Any]:
    if set(samples.targets) != {""}:
        raise DataError(
            f"The {what} gives targets by name; expected one array for the loss {loss}: give a "
            "function as the loss to use several."
        )
    return samples.targets[""]


def check_labels(what: str, samples: Samples, output: tuple[int, ...]) -> Samples:
    """Check labels: integers from 0 to classes - 1, of shape (N,) or (N, *places).

    Args:
        what: how messages call the data.
        samples: the data.
        output: the shape of the logits as the IR has it; its last axis of more than one element is
            that of the classes, others before it are places that have a label each.

    Raises:
        DataError: another shape or dtype, or a label out of range.
    """
    y = _one_array(what, samples, "cross_entropy")
    *places, classes = [size for size in output if size != 1]
    if y.dtype.kind not in "iu":
        raise DataError(
            f"The labels of the {what} are {y.dtype}; expected integers for the loss "
            "cross_entropy: give the class of each sample, or use the loss mse."
        )
    if list(y.shape[1:]) != places:
        raise DataError(
            f"The labels of the {what} have the shape {y.shape}; expected "
            f"{_expected((1, *places))} for N samples: the class of each, not one column a class."
        )
    check_classes(what, y, classes)
    return replace(samples, targets={"": y.astype(np.int64)})


def check_targets(what: str, samples: Samples, output: TensorSpec) -> Samples:
    """Check targets that have the shape of the output, whose batch axis of 1 may be left out.

    Raises:
        DataError: another shape, or a dtype that is not floating.
    """
    y = _one_array(what, samples, "mse")
    if y.dtype.kind != "f":
        raise DataError(
            f"The targets of the {what} are {y.dtype}; expected {output.dtype} for the loss mse: "
            f'convert them with .astype("{output.dtype}").'
        )
    if not _fits(y.shape, output.shape):
        raise DataError(
            f"The targets of the {what} have the shape {y.shape}; expected "
            f"{_expected(output.shape)} for N samples, as the output {output.name} has."
        )
    y = y.reshape(len(y), *output.shape).astype(output.dtype, copy=False)
    return replace(samples, targets={"": y})
