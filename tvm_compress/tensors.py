"""What goes in and out of a network: names, shapes, dtypes, and the check of what is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    import tvm

__all__ = [
    "TensorSpec",
    "check_classes",
    "check_inputs",
    "check_samples",
    "input_specs",
    "join_samples",
    "output_specs",
]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, shape and dtype (as numpy spells it)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return self.size * np.dtype(self.dtype).itemsize


def _specs(pairs: Sequence[tuple[str, Any]]) -> tuple[TensorSpec, ...]:
    from tvm_compress import edge

    specs = []
    for name, expr in pairs:
        if not edge.is_tensor(expr):
            raise UnsupportedError(
                f"{name} is {expr.ty}; expected a tensor: let the network take and return tensors "
                "one by one."
            )
        shape = edge.static_shape(expr)
        if shape is None:
            raise UnsupportedError(
                f"{name} has the dynamic type {expr.ty}; expected a static shape: give it to load "
                "with shapes={...}."
            )
        specs.append(TensorSpec(name, shape, edge.dtype_of(expr)))
    return tuple(specs)


def input_specs(mod: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Give the inputs of ``main`` in order.

    Raises:
        PassError: there is no straight-line function ``main``.
        UnsupportedError: it takes nothing, something that is no tensor, or a dynamic shape.
    """
    from tvm_compress import edge, ir

    params = ir.main_function(mod).params
    if not params:
        raise UnsupportedError(
            "The network has no inputs, so its outputs never change; expected at least one: export "
            "what gives its weights as an input."
        )
    return _specs([(edge.var_name(param), param) for param in params])


def output_specs(mod: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """Give the outputs of ``main`` in order."""
    from tvm_compress import edge, ir

    return _specs(edge.outputs_of(ir.main_function(mod))[0])


def check_classes(what: str, labels: NDArray[Any], classes: int) -> None:
    """Check that labels, at least one, are classes of a network.

    Raises:
        DataError: one is below 0 or not below ``classes``; ``what`` is how it calls the data.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"The labels of the {what} go from {low} to {high}; expected 0 to {classes - 1}, for "
            f"the network has {classes} classes."
        )


def check_inputs(
    specs: Sequence[TensorSpec], inputs: NDArray[Any] | Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Give arrays by input name after checking names, shapes and dtypes.

    Raises:
        DataError: with what was given and what was expected.
    """
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise DataError(
                f"One array was given for {len(specs)} inputs; expected a dict with {names}."
            )
        inputs = {specs[0].name: inputs}
    expected = {spec.name: spec for spec in specs}
    for name in inputs:
        if name not in expected:
            raise DataError(f"There is no input {name}; expected {', '.join(expected)}.")
    arrays = {}
    for spec in specs:
        if spec.name not in inputs:
            raise DataError(f"The input {spec.name} is missing; expected {', '.join(expected)}.")
        array = np.asarray(inputs[spec.name])
        if array.dtype != np.dtype(spec.dtype):
            raise DataError(
                f"The input {spec.name} is {array.dtype}; expected {spec.dtype}: convert it with "
                f'.astype("{spec.dtype}").'
            )
        if array.shape != spec.shape:
            raise DataError(
                f"The input {spec.name} has the shape {array.shape}; expected {spec.shape}."
            )
        arrays[spec.name] = np.asarray(array, order="C")
    return arrays


def check_samples(
    specs: Sequence[TensorSpec], inputs: NDArray[Any] | Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Give arrays by input name, each of shape ``(N, *spec.shape)``: N samples.

    Where every input's first axis has the size 1 (the batch), arrays of N samples along that axis
    are taken too.

    Raises:
        DataError: as :func:`check_inputs`, or different numbers of samples.
    """
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            return check_inputs(specs, inputs)  # says what is missing
        inputs = {specs[0].name: inputs}
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    counts = {
        spec.name: len(arrays[spec.name])
        for spec in specs
        if spec.name in arrays
        and spec.shape[:1] == (1,)
        and arrays[spec.name].shape[1:] == spec.shape[1:]
        and arrays[spec.name].ndim == len(spec.shape)
    }
    numbers = set(counts.values())
    if len(counts) < len(specs) or len(numbers) != 1 or numbers == {0}:
        if len(numbers) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"The inputs hold different numbers of samples ({told}).")
        return {name: value[None] for name, value in check_inputs(specs, arrays).items()}
    samples = numbers.pop()
    # An array of no axes is not of this network, and has no first sample.
    firsts = {name: value[:1] if value.ndim else value for name, value in arrays.items()}
    check_inputs(specs, firsts)
    return {
        spec.name: np.ascontiguousarray(arrays[spec.name]).reshape(samples, *spec.shape)
        for spec in specs
    }


def join_samples(stacked: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Join outputs of shape ``(N, batch, ...)`` to ``(N * batch, ...)``; the reverse of the above.

    Of one sample the output keeps its own shape; N outputs without axes become ``(N,)``.
    """
    return {
        name: value.reshape(value.shape[1:])
        if len(value) == 1
        else value.reshape(-1, *value.shape[2:])
        for name, value in stacked.items()
    }
