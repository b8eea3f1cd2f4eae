"""``prune``: set the weights of smallest magnitude to zero.

Before::

    fc_weight = const            # dense
    y = R.matmul(x, fc_weight)

After ``Prune(sparsity=0.9)``::

    fc_weight = const            # 90 % of its elements are 0.0
    y = R.matmul(x, fc_weight)

Source: Han et al., Learning both Weights and Connections (arXiv 1506.02626), section 3; Deep
Compression (arXiv 1510.00149), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize

__all__ = [
    "Prune",
    "check_sparsity",
    "check_weight",
    "keep_largest",
    "option_by_layer",
    "option_by_rule",
]

_T = TypeVar("_T")
# What is looked at at a time: a piece stays in the second-level cache through all the steps on it.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Prune(Pass):
    """Magnitude pruning, unstructured, of every weight of a convolution or product.

    Args:
        sparsity: share of the weights that are zero afterwards, 0..1.
        scope: ``layer`` prunes each weight tensor to ``sparsity``; ``global`` prunes all tensors
            together, by one threshold on the magnitude.
        layers: sparsity by pattern of the weight's name (``fc*``), in place of ``sparsity``; the
            first pattern that fits counts. With ``global`` scope those tensors stand apart.
        first: sparsity of the weights that meet an input of the network first, in place of
            ``sparsity``; 0 keeps them dense. Found from the graph; a pattern in ``layers`` goes
            before it.
        last: the same for the weights whose results reach an output through no other weight.

    Biases are no weights and are never pruned: they are few, and a unit without its bias cannot
    move its threshold.

    Raises:
        OptionError: a sparsity outside 0..1, or a pattern that fits no weight.
        PassError: a weight is shared already, is not float or is not finite.
    """

    name: ClassVar[str] = "prune"

    sparsity: float = 0.9
    scope: Literal["layer", "global"] = "layer"
    layers: Mapping[str, float] = field(default_factory=dict)
    first: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        check_sparsity(self.name, self.sparsity, *self.layers.values(), self.first, self.last)
        if self.scope not in ("layer", "global"):
            raise OptionError(f"prune: the scope is {self.scope}; expected layer or global.")

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with pruned weights."""
        # A stock pass in front may have put the constants back into the calls, without names.
        mod = Canonicalize().apply(mod)
        weights = ir.weights(mod)
        wanted = option_by_rule(self.name, mod, self.layers, self.first, self.last)
        dense = {name: check_weight(self.name, w) for name, w in weights.items()}
        # Each becomes a constant at once: a large network's weights do not fit so often.
        pruned: dict[str, Any] = {}
        together = []
        for name, value in dense.items():
            if self.scope == "layer" or name in wanted:
                pruned[name] = edge.constant(keep_largest(value, wanted.get(name, self.sparsity)))
            else:
                together.append(name)
        kept = _keep_largest([dense[name] for name in together], self.sparsity)
        for name, value in zip(reversed(together), kept, strict=True):
            pruned[name] = edge.constant(value)
        return ir.replace_parameters(mod, pruned)


def keep_largest(weights: NDArray[Any], sparsity: float) -> NDArray[Any]:
    """Set exactly ``round(sparsity * size)`` elements to zero, the smallest by magnitude.

    Among equal magnitudes the later element goes first, so the result is unique.

    >>> keep_largest(np.array([[0.5, -2.0], [0.1, 1.0]], "float32"), 0.5)
    array([[ 0., -2.],
           [ 0.,  1.]], dtype=float32)
    """
    (result,) = _keep_largest([weights], sparsity)
    return result


def _keep_largest(tensors: Sequence[NDArray[Any]], sparsity: float) -> Iterator[NDArray[Any]]:
    """Prune tensors together by one threshold, as :func:`keep_largest` does; the last one first."""
    size = sum(tensor.size for tensor in tensors)
    drop = round(sparsity * size)
    threshold, ties = _threshold(tensors, size, drop) if drop else (np.zeros(1), 0)
    for tensor in reversed(tensors):
        result = tensor.copy()
        flat = result.reshape(-1)
        for start in reversed(range(0, flat.size if drop else 0, _PIECE)):
            piece = flat[start : start + _PIECE]
            magnitude = np.abs(piece)
            piece[magnitude < threshold] = 0
            if ties:
                # The later element goes first, here and in the pieces and tensors behind.
                equal = np.flatnonzero(magnitude == threshold)[-ties:]
                piece[equal] = 0
                ties -= equal.size
        yield result


def _threshold(tensors: Sequence[NDArray[Any]], size: int, drop: int) -> tuple[NDArray[Any], int]:
    """Give the magnitude, (1,), of the last element that goes, and how many such elements go."""
    # Tensors of two dtypes meet in the wider one.
    magnitude = np.empty(size, np.result_type(*(tensor.dtype for tensor in tensors)))
    start = 0
    for tensor in tensors:
        np.abs(tensor, out=magnitude[start : start + tensor.size].reshape(tensor.shape))
        start += tensor.size
    magnitude.partition(drop - 1)
    threshold = magnitude[drop - 1 : drop].copy()  # the view would hold them all
    return threshold, drop - int(np.count_nonzero(magnitude[:drop] < threshold))


def check_weight(pass_name: str, weight: ir.Weight, *, float32: bool = False) -> NDArray[Any]:
    """Give a weight's dense value if it is float (or float32 alone), not shared and finite.

    Raises:
        PassError: otherwise.
    """
    name, value = weight.name, weight.parameter.value
    if weight.parameter.shared:
        order = "" if pass_name == "share-weights" else f"{pass_name} before share-weights, and "
        raise PassError(
            f"{pass_name}: the weight {name} is already shared; expected a dense weight: run "
            f"{order}share-weights once."
        )
    if value.dtype.kind != "f":
        raise PassError(
            f"{pass_name}: the weight {name} is {value.dtype}; expected float32: run {pass_name} "
            "before the network is quantised."
        )
    for what, wrong in (("NaN", np.isnan(value)), ("infinite value", np.isinf(value))):
        if wrong.any():
            raise PassError(
                f"{pass_name}: the weight {name} holds {int(wrong.sum())} {what}; expected "
                "numbers: load the network again or lower the learning rate."
            )
    if float32 and value.dtype != np.float32:
        raise PassError(
            f"{pass_name}: the weight {name} is {value.dtype}; expected float32: convert the "
            "network before it is compressed."
        )
    return value


def check_sparsity(pass_name: str, *values: float | None) -> None:
    """Check sparsities that may be left out.

    Raises:
        OptionError: one lies outside 0..1.
    """
    for value in values:
        if value is not None and not 0.0 <= value <= 1.0:
            raise OptionError(
                f"{pass_name}: the sparsity is {value}; expected a number from 0 to 1."
            )


def option_by_rule(
    pass_name: str,
    mod: tvm.IRModule,
    patterns: Mapping[str, _T],
    first: _T | None,
    last: _T | None,
) -> dict[str, _T]:
    """Give the options of the weights that have one of their own.

    A pattern goes before ``first``, and ``first`` before ``last``.

    Raises:
        OptionError: a pattern that fits no weight.
    """
    chosen: dict[str, _T] = {}
    if last is not None:
        chosen |= dict.fromkeys(ir.last_weights(mod), last)
    if first is not None:
        chosen |= dict.fromkeys(ir.first_weights(mod), first)
    return chosen | option_by_layer(pass_name, ir.weights(mod), patterns)


def option_by_layer(
    pass_name: str, weights: Mapping[str, ir.Weight], patterns: Mapping[str, _T]
) -> dict[str, _T]:
    """Give each weight's option by the first pattern that fits its name.

    Raises:
        OptionError: a pattern that fits no weight.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise OptionError(
                f"{pass_name}: the pattern {pattern} fits no weight; the weights are "
                f"{', '.join(weights) or 'none'}."
            )
    chosen: dict[str, _T] = {}
    for name in weights:
        for pattern, option in patterns.items():
            if fnmatchcase(name, pattern):
                chosen[name] = option
                break
    return chosen
