"""``round-biases``: round what is added to few bits, so that a file spends a third on it.

Before::

    fc_bias = const              # 0.1237, -0.0481, ...
    y = R.add(fc_sum, fc_bias)

After ``RoundBiases(bits=8)``::

    fc_bias = const              # 0.12402, -0.04785, ...: 127, -49, ... times 2 ** -10
    y = R.add(fc_sum, fc_bias)

Pruned and shared weights take so few bytes that the biases, few as they are, become a tenth of a
``.tcz`` file. Its archive profile codes a float bit by bit, and the low bits of a bias are noise
that no model predicts; rounded to a multiple of a power of two they are zeros, which cost next to
nothing. The tensor stays float32, so nothing else has to know; in the flash profile and in firmware
it takes what it took.

Source: fixed point with a scale for each tensor as in Courbariaux et al., Training Deep Neural
Networks with Low Precision Multiplications (arXiv 1412.7024), section 5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import frexp, ldexp
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import OptionError
from tvm_compress.passes.base import Pass
from tvm_compress.passes.canonicalize import Canonicalize

__all__ = ["RoundBiases", "round_to_bits"]

# The arguments of an operator that are added to its result and multiplied with nothing.
_ADDED = {
    "relax.add": (0, 1),
    "relax.subtract": (0, 1),
    "relax.nn.batch_norm": (2,),
    "relax.nn.layer_norm": (2,),
    "relax.nn.group_norm": (2,),
}


@dataclass(frozen=True)
class RoundBiases(Pass):
    """Round each dense float parameter that is added, wherever it is used, by one step a tensor.

    Which ones those are is read from the operators: biases of convolutions, products and
    recurrences, shifts of normalisations, embeddings of positions. A tensor of one element (an
    epsilon) stays as it is, and so does one with infinities (a mask of attention). Rounding again
    changes nothing.

    The pass stands last in a recipe: fine-tuning behind it moves the biases off their grid again,
    and nothing holds them there as in ``fixed-point``.

    Args:
        bits: bits of the largest magnitude of a tensor, the sign included, 2..16.

    Raises:
        OptionError: ``bits`` is no whole number, or outside its range.
    """

    name: ClassVar[str] = "round-biases"

    bits: int = 8

    def __post_init__(self) -> None:
        """Check the options."""
        if not isinstance(self.bits, int) or self.bits not in range(2, 17):
            raise OptionError(
                f"round-biases: the biases have {self.bits!r} bits; expected a whole number from 2 "
                "to 16."
            )

    def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
        """Give the module with rounded biases."""
        mod = Canonicalize().apply(mod)
        added = _added(ir.main_function(mod))

        def rounded(parameter: ir.Parameter) -> Any:
            value = parameter.value
            if parameter.name not in added or parameter.shared or value.dtype.kind != "f":
                return None
            if value.size == 1 or not np.isfinite(value).all():
                return None
            return edge.constant(round_to_bits(value, self.bits))

        return ir.replace_parameters(mod, rounded)


def round_to_bits(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Round to whole multiples of the smallest power of two that lets ``bits`` bits hold them.

    Args:
        values: floats of any shape, finite.
        bits: of the largest multiple, the sign included, so it is at most ``2 ** (bits - 1) - 1``.

    Returns:
        The same shape and dtype; each value is off by at most half a step. What would round to
        infinity becomes the largest float.

    >>> round_to_bits(np.array([0.9, -0.3, 0.01], "float32"), 4)
    array([ 1.  , -0.25,  0.  ], dtype=float32)
    """
    largest = float(np.abs(values).max(initial=0))
    if largest == 0:
        return values
    fraction, exponent = frexp(largest)  # fraction in 0.5 .. 1
    limit = 2 ** (bits - 1) - 1
    # Above the limit the next power of two, so that a second rounding meets the same step.
    exponent -= bits - 1 - (ldexp(fraction, bits - 1) > limit)
    numbers = np.round(np.ldexp(values.astype(np.float64), -exponent))
    with np.errstate(over="ignore"):
        rounded = np.ldexp(numbers, exponent)
    # A mask may hold the largest float, whose nearest multiple is none; -0.0 would cost a sign.
    top = np.finfo(values.dtype).max
    return np.asarray(np.clip(rounded, -top, top) + 0.0).astype(values.dtype)


def _added(function: relax.Function) -> set[str]:
    """Give the names of the variables whose every use is an addition."""
    additions: Counter[str] = Counter()
    for binding in ir.bindings(function):
        for index in _ADDED.get(edge.op_name(binding.value) or "", ()):
            arg = binding.value.args[index]
            if isinstance(arg, relax.Var):
                additions[edge.var_name(arg)] += 1
    uses = {edge.var_name(var): count for var, count in edge.use_counts(function).items()}
    return {name for name, count in additions.items() if uses[name] == count}
