"""``reduce-rate``: choose codes by what they lose and by the bits that they take in a file.

Before::

    fc_weight = tvm_compress.codebook(codes, centroids)      # or a dense constant
    y = R.matmul(x, fc_weight)

After ``ReduceRate(lam=0.01)``::

    fc_weight = tvm_compress.codebook(codes, centroids)      # fewer zeros, bits and centroids
    y = R.matmul(x, fc_weight)

Dense weights are rounded to a grid first, whose step follows from ``lam``: entropy-constrained
quantisation. A uniform grid with entropy coding behind it loses 1.53 dB less at equal bits than
centroids of least error. Sources: :mod:`tvm_compress.rate_distortion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import edge, fixed_point, ir
from tvm_compress import rate_distortion as rate
from tvm_compress import reconstruction as solve
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops import codebook, codebook_numpy, flat_codes
from tvm_compress.passes.base import InputsPass
from tvm_compress.passes.canonicalize import Canonicalize
from tvm_compress.passes.prune import check_weight, option_by_layer

__all__ = ["ReduceRate"]

_Array = NDArray[Any]

# An output with hardly any weight is judged as one with this share of the mean energy.
_FAINT = 1e-3
# Samples beyond this many are not looked at: moments of some hundred pictures are good enough.
_MOST_SAMPLES = 256
# Choosing column by column, and fitting centroids behind it.
_TURNS = 2
# Centroids are fitted to about so many weights at the most.
_FITTED = 1 << 18


@dataclass(frozen=True)
class ReduceRate(InputsPass):
    """Re-choose the codes of every weight by rate and distortion, and fit its centroids.

    The distortion of a layer is the squared error of its outputs over their energy. What its inputs
    look like is measured on samples (``.on(inputs)``; :func:`tvm_compress.compress` gives its
    ``calibrate=``, or else the inputs of ``train=``; of more than 256 as many are looked at, evenly
    spaced), and biases take up what shifts a mean output.
    Without samples inputs are taken to be rectified noise
    (:func:`tvm_compress.reconstruction.assumed_inputs`), and each output channel of a layer counts
    the same, as where a normalisation was folded into its weights.

    Weights that are zero stay zero. Weights in fixed point keep their grid. Where a weight has
    several codebooks that do not belong to output channels, centroids stay as they are.

    Args:
        lam: what a bit is worth: the distortion that may be added, as the mean over all layers, for
            each bit less that a weight takes, as the mean over all weights that are not zero. It is
            one slope for all layers, so bits go where they help most. 0.005 roughly gives 4 bits a
            dense weight; above 0.
        damping: added to the diagonal of a layer's measured Gram matrix, as a share of its mean,
            above 0; more of it trusts the samples less. Not used without samples.
        keep_zeros: whether weights that are zero stay zero; False lets them come back.
        layers: ``lam`` by pattern of the weight's name; the first pattern that fits counts; 0
            leaves the weight as it is.

    Raises:
        OptionError: an option outside its range, or a pattern that fits no weight.
        PassError: a weight is not float32 or is not finite.
    """

    name: ClassVar[str] = "reduce-rate"
    needs_inputs: ClassVar[bool] = False

    lam: float = 0.005
    damping: float = 0.05
    keep_zeros: bool = True
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0.0 < self.lam < np.inf:
            raise OptionError(
                f"reduce-rate: lam is {self.lam}; expected a number above 0, such as 0.005."
            )
        for lam in self.layers.values():
            if not 0.0 <= lam < np.inf:
                raise OptionError(
                    f"reduce-rate: a layer's lam is {lam}; expected a number above 0, or 0 to "
                    "leave the weight as it is."
                )
        if not 0.0 < self.damping < np.inf:
            raise OptionError(
                f"reduce-rate: the damping is {self.damping}; expected a number above 0, such as "
                "0.05."
            )

    def rewritten(self, mod: tvm.IRModule, inputs: Any) -> tvm.IRModule:
        """Give the module with weights of a lower rate; ``inputs`` may be None."""
        mod = Canonicalize().apply(mod)
        weights = ir.weights(mod)
        own = option_by_layer(self.name, weights, self.layers)
        for weight in weights.values():
            _check(weight)
        kept = sum(int(np.count_nonzero(w.parameter.value)) for w in weights.values())
        bit = len(weights) / max(kept, 1)  # of one bit of the whole network, in units of lam
        named = ir.parameters(mod)
        new: dict[str, tvm.ir.Expr] = {}

        def change(layer: solve.LayerInputs, damping: float) -> dict[str, _Array]:
            name = layer.name
            lam = own.get(name, self.lam) * bit
            if not lam or not layer.rows.any():
                return {}
            codes, table = self._shared(layer, named[name], lam, damping)
            new[name] = codebook(edge.constant(codes), edge.constant(table))
            values = {name: codebook_numpy(codes, table)}
            if layer.bias is not None:
                rows = layer.as_rows(values[name]).astype(np.float64)
                values[layer.bias] = layer.moved_bias(named[layer.bias].value, rows)
                new[layer.bias] = edge.constant(values[layer.bias])
            return values

        if inputs is not None:
            measured = partial(change, damping=self.damping)
            solve.layer_inputs(mod, inputs, measured, most=_MOST_SAMPLES)
        for layer in solve.assumed_inputs(mod):
            if layer.name not in new:
                change(layer, 0.0)
        return ir.replace_parameters(mod, new)

    def _shared(
        self, layer: solve.LayerInputs, parameter: ir.Parameter, lam: float, damping: float
    ) -> tuple[NDArray[np.uint8], _Array]:
        """Give codes and centroids of a layer; ``damping`` is 0 where its inputs are assumed."""
        aims, grams = layer.rows, layer.gram
        if damping:
            grams = np.stack([solve.damped(gram, damping) for gram in grams])
            parts = zip(layer.rows, layer.gram, layer.cross, strict=True)
            aims = np.stack([solve.target_rows(*part, damping) for part in parts])
        groups, rows, columns = aims.shape
        flat = (groups * rows, columns)
        if damping:
            products = np.einsum("grc,gcd,grd->gr", layer.rows, grams, layer.rows, optimize=True)
            energy = np.full_like(products, products.mean())
        else:
            # Channels behind a normalisation have outputs of about one energy, whatever the scale
            # of their weights; how a row's products cancel out is not known, so its norm counts.
            energy = np.square(layer.rows).sum(2)
            energy += _FAINT * energy.mean()
        scale = 1 / (energy * energy.size)
        held = (layer.rows == 0).reshape(flat) & self.keep_zeros
        freedom = 1 / np.diagonal(solve.upper_factor(grams), axis1=1, axis2=2) ** 2
        importance = (scale[:, :, None] * freedom[:, None, :]).reshape(flat)
        weight = aims.reshape(flat)
        if parameter.codes is None or parameter.centroids is None:
            fixed = False
            shared, _ = rate.quantise(weight, importance, lam, held)
        else:
            shared, old = rate.ascending(*_flat(layer, parameter))
            one_a_row = bool((shared.part == shared.part[:, :1]).all())
            fixed = fixed_point.step_of(parameter.centroids) is not None or not one_a_row
            shared, _ = rate.reduce_rate(weight, importance, shared, lam, held, fixed=fixed)
        for _ in range(_TURNS):
            shared = rate.compensate(aims, grams, scale, shared, lam, held)
            if not fixed:
                shared = _fitted(aims, grams, scale, shared)
        if not fixed:
            shared = replace(shared, table=round_centroids(shared.table))
        if parameter.centroids is None or (not fixed and parameter.parts == 1):
            used = np.union1d(shared.codes, 0)
            codes, table = np.searchsorted(used, shared.codes), shared.table[0, used]
        elif fixed:
            codes, table = old[shared.part, shared.codes], parameter.centroids
        else:
            codes, table = shared.codes, shared.table.reshape(parameter.centroids.shape)
        laid = layer.dense(codes.reshape(aims.shape).astype(np.uint8))
        dtype = np.float32 if parameter.centroids is None else parameter.centroids.dtype
        return np.ascontiguousarray(laid), table.astype(dtype)


def round_centroids(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to 8 significant bits, which moves a value by 2**-9 of it and saves half of its bytes.

    >>> round_centroids(np.array([0.0, 1.001, -3.14159])).tolist()
    [0.0, 1.0, -3.140625]
    """
    mantissa, exponent = np.frexp(table)
    return np.asarray(np.ldexp(np.rint(mantissa * 256) / 256, exponent), np.float64)


def _check(weight: ir.Weight) -> None:
    if not weight.parameter.shared:
        check_weight(ReduceRate.name, weight, float32=True)
    elif not np.isfinite(weight.parameter.value).all():
        raise PassError(
            f"reduce-rate: the weight {weight.name} has centroids that are no finite numbers; "
            "expected numbers: load the network again or lower the learning rate."
        )


def _flat(layer: solve.LayerInputs, parameter: ir.Parameter) -> tuple[_Array, _Array, _Array]:
    """Give codes (rows, columns), centroids (parts, levels) and the part of each code."""
    assert parameter.codes is not None and parameter.centroids is not None
    table = parameter.centroids.reshape(parameter.parts, -1)
    first = flat_codes(np.zeros(parameter.codes.shape, np.int64), parameter.centroids.shape)
    columns = layer.rows.shape[2]
    codes, part = (
        layer.as_rows(v).reshape(-1, columns) for v in (parameter.codes, first // table.shape[1])
    )
    return codes.astype(np.int64), table, part


def _fitted(aims: _Array, grams: _Array, scale: _Array, shared: rate.Shared) -> rate.Shared:
    """Give centroids of least output error; every part has rows of its own."""
    table = shared.table.copy()
    codes = shared.codes.reshape(aims.shape)
    part = np.broadcast_to(shared.part, shared.codes.shape)[:, 0].reshape(scale.shape)
    every = -(-aims.size // _FITTED)  # of many rows a sample decides
    for number in range(len(table)):
        rows = [np.flatnonzero(p == number)[:: every if len(table) == 1 else 1] for p in part]
        groups = [group for group, chosen in enumerate(rows) if chosen.size]
        if groups:
            parts = [(aims[g, rows[g]], grams[g], codes[g, rows[g]]) for g in groups]
            scales = [scale[g, rows[g]] for g in groups]
            table[number] = solve.fit_centroids(parts, table[number], scales)
    return rate.ascending(shared.codes, table, shared.part)[0]
