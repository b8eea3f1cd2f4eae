"""Pruning and sharing of one layer so that its outputs on given inputs change least.

A layer's squared output error is a quadratic form of its weights' change: for a weight of rows
(one row an output) and inputs ``x``, ``sum (dw @ x)**2 = sum dw @ H @ dw.T`` with the layer's
Gram matrix ``H = sum x x^T``. So a few hundred inputs without labels tell which weights matter and
how the others have to move when one is taken or rounded.

Sources: Frantar & Alistarh, Optimal Brain Compression (arXiv 2208.11580), section 3 and 5;
SparseGPT (arXiv 2301.00774), section 3; Frantar et al., GPTQ (arXiv 2210.17323), section 3. The
formulas are those of optimal brain surgeon: a weight ``p`` that moves by ``d`` costs
``d**2 / inv(H)[p, p]``, and the best move of the others is ``-d * inv(H)[:, p] / inv(H)[p, p]``.

Everything here is numpy on arrays; :class:`tvm_compress.passes.Reconstruct` carries it to a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import DataError
from tvm_compress.ops.layout import axes_between, spatial, split_padding
from tvm_compress.targets.reference import evaluate
from tvm_compress.tensors import check_samples, input_specs

__all__ = [
    "LayerInputs",
    "Stream",
    "assumed_inputs",
    "damped",
    "fit_centroids",
    "fit_scales",
    "layer_inputs",
    "output_error",
    "prune_blocks",
    "prune_rows",
    "refit_rows",
    "share_rows",
    "target_rows",
    "upper_factor",
]

_Floats = NDArray[np.float64]
_TURNS = 16  # in which blocks are pruned
_BLOCK = 64  # columns whose pruned weights are chosen together
_FAINTEST = 1e-30  # mean square of inputs that may be measured: below, float32 has underflown
_LEAST_VARIANCE = 1e-6  # of an input, over its mean square: below is what float32 rounds off
_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")


def output_error(change: _Floats, gram: _Floats) -> float:
    """Give the squared output error of a change of weights (rows, columns).

    >>> output_error(np.array([[1.0, -1.0]]), np.array([[2.0, 0.5], [0.5, 1.0]]))
    2.0
    """
    return float(np.einsum("rc,cd,rd->", change, gram, change, optimize=True))


def damped(gram: _Floats, damping: float) -> _Floats:
    """Add ``damping`` times the mean of the diagonal to it, so that the matrix has an inverse.

    An input that is always zero gets a diagonal of its own.

    >>> damped(np.diag([1.0, 3.0, 0.0]), 0.75)
    array([[2., 0., 0.],
           [0., 4., 0.],
           [0., 0., 1.]])
    """
    level = damping * float(np.mean(np.diag(gram)))
    return gram + (level if level > _FAINTEST else 1.0) * np.eye(len(gram))


def upper_factor(gram: _Floats) -> _Floats:
    """Give the upper Cholesky factor ``U`` of the inverse: ``inv(gram) = U.T @ U``.

    Row ``c`` of it, over its diagonal, is how the columns behind ``c`` compensate for ``c`` once
    the columns before are settled (GPTQ, section 3.3). Of a stack of matrices each has its own.
    """
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(gram)), -1, -2)


def prune_rows(weight: _Floats, gram: _Floats, drop: int) -> NDArray[np.bool_]:
    """Choose ``drop`` weights to set to zero, with the others' compensation in view.

    Weights are settled in blocks of columns; within a block those of the smallest cost go, and the
    columns behind take up the error (SparseGPT, section 3.2). The share of every block is chosen
    by the costs of the whole layer at its first state, so blocks of little worth lose more.

    Args:
        weight: (rows, columns).
        gram: (columns, columns), positive definite: see :func:`damped`.
        drop: how many weights become zero, 0 to ``weight.size``.

    Returns:
        The weights that stay, bool of the same shape; :func:`refit_rows` gives their values.
    """
    weight = weight.copy()
    columns = weight.shape[1]
    factor = upper_factor(gram)
    cost_of = np.diag(factor) ** 2
    first = weight**2 / cost_of
    order = np.argsort(first, axis=None, kind="stable")[:drop]
    counts = np.bincount(order % columns // _BLOCK, minlength=-(-columns // _BLOCK))
    stays = np.ones(weight.shape, bool)
    for block, count in enumerate(counts):
        start = block * _BLOCK
        end = min(start + _BLOCK, columns)
        cost = weight[:, start:end] ** 2 / cost_of[start:end]
        chosen = np.argsort(cost, axis=None, kind="stable")[:count]
        here = np.ones(cost.shape, bool)
        here.reshape(-1)[chosen] = False
        stays[:, start:end] = here
        for column in range(start, end):
            error = np.where(stays[:, column], 0.0, weight[:, column]) / factor[column, column]
            weight[:, column:] -= error[:, None] * factor[column, column:]
    return stays


def prune_blocks(
    weight: _Floats, gram: _Floats, drop: int, blocks: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Choose ``drop`` blocks of weights to set to zero, a part of them at a time.

    A block's cost is what the outputs lose without it, all other weights that are left refitted:
    with ``w`` the block's part of a row, refitted to what went before, and ``B`` the block's part
    of the inverse of the Gram matrix of what the row has left, the sum of ``w @ inv(B) @ w`` over
    its rows (Optimal Brain Compression, section 4, equation 5).

    Args:
        weight: (rows, columns).
        gram: (columns, columns), positive definite: see :func:`damped`.
        drop: how many blocks become zero.
        blocks: (rows, columns), each weight's block as a number from 0 on.

    Returns:
        The weights that stay, bool (rows, columns).
    """
    target = weight @ gram
    alive = np.ones(int(blocks.max(initial=-1)) + 1, bool)
    for turn in range(1, _TURNS + 1) if drop else ():
        cost = _block_costs(target, gram, blocks, alive)
        cost[~alive] = -1.0  # gone already
        alive = np.ones(cost.size, bool)
        alive[np.argsort(cost, kind="stable")[: drop * turn // _TURNS]] = False
    return alive[blocks]


def _block_costs(
    target: _Floats, gram: _Floats, blocks: NDArray[np.int64], alive: NDArray[np.bool_]
) -> _Floats:
    """Give what each block costs that is alive; ``target`` is the weight times the Gram matrix."""
    cost = np.zeros(alive.size)
    alike: dict[bytes, list[int]] = {}  # rows that have the same left, in the same blocks
    for row, numbers in enumerate(blocks):
        order = np.unique(numbers, return_inverse=True)[1]
        alike.setdefault(np.where(alive[numbers], order, -1).tobytes(), []).append(row)
    for rows in alike.values():
        left = np.flatnonzero(alive[blocks[rows[0]]])
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        weight = target[rows][:, left] @ inverse
        order = np.argsort(blocks[rows[0], left], kind="stable")
        starts = np.flatnonzero(np.diff(blocks[rows[0], left[order]], prepend=-1))
        sizes = np.diff(starts, append=left.size)
        for size in np.unique(sizes):
            places = order[starts[sizes == size][:, None] + np.arange(size)]  # (blocks, size)
            parts = np.linalg.inv(inverse[places[:, :, None], places[:, None, :]])
            own = weight[:, places]
            lost = np.einsum("rbi,bij,rbj->rb", own, parts, own, optimize=True)
            np.add.at(cost, blocks[rows][:, left[places[:, 0]]], lost)
    return cost


def refit_rows(weight: _Floats, gram: _Floats, stays: NDArray[np.bool_]) -> _Floats:
    """Give the weights of least output error that are zero outside ``stays``.

    The exact solution of the normal equations of each row (Optimal Brain Compression, section 3
    is its greedy form).

    Args:
        weight: (rows, columns), before pruning.
        gram: (columns, columns), positive definite.
        stays: which weights may differ from zero.
    """
    target = weight @ gram
    result = np.zeros_like(weight)
    for row, mask in enumerate(stays):
        if mask.all():
            result[row] = weight[row]
        elif mask.any():
            result[row, mask] = np.linalg.solve(gram[np.ix_(mask, mask)], target[row, mask])
    return result


def share_rows(
    weight: _Floats, gram: _Floats, centroids: _Floats, stays: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Round weights to centroids column by column; the columns behind take up the error.

    GPTQ (section 3.1) with a codebook in place of a grid.

    Args:
        weight: (rows, columns).
        gram: (columns, columns), positive definite.
        centroids: (k,) ascending from index 1 on; index 0 is the zero of the pruned weights.
        stays: weights that get a code from 1 on; the others get code 0.

    Returns:
        The codes, uint8 (rows, columns).
    """
    weight = weight.copy()
    factor = upper_factor(gram)
    free = centroids[1:]
    bounds = (free[1:] + free[:-1]) / 2
    codes = np.zeros(weight.shape, np.uint8)
    for column in range(weight.shape[1]):
        nearest = np.searchsorted(bounds, weight[:, column]) + 1
        codes[:, column] = np.where(stays[:, column], nearest, 0)
        error = (weight[:, column] - centroids[codes[:, column]]) / factor[column, column]
        # What is pruned stays zero, so nothing is moved there: its error passes on at its turn.
        weight[:, column:] -= error[:, None] * factor[column, column:]
    return codes


def fit_centroids(
    parts: Sequence[tuple[_Floats, _Floats, NDArray[Any]]],
    centroids: _Floats,
    scales: Sequence[_Floats] | None = None,
) -> _Floats:
    """Give the centroids of least output error for given codes; centroid 0 stays zero.

    The error is a quadratic form of the centroids too: with ``S_r`` (k, columns) telling which
    columns of row ``r`` have each code, its normal matrix is ``sum_r S_r H S_r^T``.

    Args:
        parts: (weight, gram, codes) of each group of rows that shares a Gram matrix.
        centroids: (k,), the present ones; those that no code uses stay as they are.
        scales: how much the error of each row counts, (rows,) of each group; 1 if left out.
    """
    count = len(centroids)
    matrix, right = np.zeros((count, count)), np.zeros(count)
    for number, (weight, gram, codes) in enumerate(parts):
        target = weight @ gram
        for row, code in enumerate(codes):
            scale = 1.0 if scales is None else scales[number][row]
            indicator = np.zeros((count, code.size))
            indicator[code, np.arange(code.size)] = 1.0
            matrix += scale * (indicator @ gram @ indicator.T)
            right += scale * (indicator @ target[row])
    used = np.unique(np.concatenate([codes.ravel() for _, _, codes in parts]))
    used = used[used > 0]
    result = centroids.copy()
    if used.size:
        result[used] = np.linalg.lstsq(matrix[np.ix_(used, used)], right[used], rcond=1e-10)[0]
    return result


def fit_scales(values: _Floats, weight: _Floats, gram: _Floats, scales: _Floats) -> _Floats:
    """Give the factor of each row of ``values`` that brings its outputs next to the weights'.

    Args:
        values: (rows, columns).
        weight: (rows, columns), what the scaled values stand for.
        gram: (columns, columns), positive definite.
        scales: (rows,), the present factors: kept where no positive one is better than zero.

    >>> fit_scales(np.array([[1.0, 1.0]]), np.array([[2.0, 4.0]]), np.eye(2), np.ones(1))
    array([3.])
    """
    moved = values @ gram
    fit, energy = (moved * weight).sum(1), (moved * values).sum(1)
    useful = (fit > 0) & (energy > 0)
    return np.where(useful, fit / np.where(useful, energy, 1.0), scales)


def target_rows(weight: _Floats, gram: _Floats, cross: _Floats, damping: float) -> _Floats:
    """Give the dense weights that best repeat the outputs of the layer before compression.

    The layer used to see ``x`` and sees ``z`` now, what the compressed layers in front of it give.
    Least squares with a pull towards the weights as they were, of the strength of the damping.

    Args:
        weight: (rows, columns).
        gram: (columns, columns), ``sum z z^T``, not damped.
        cross: (columns, columns), ``sum x z^T``.
        damping: see :func:`damped`.
    """
    held = damped(gram, damping)
    return np.asarray(np.linalg.solve(held, (weight @ (cross + held - gram)).T).T, np.float64)


# ---- a layer's inputs ----------------------------------------------------------------------------


@dataclass
class LayerInputs:
    """A convolution or product with its weight as rows, and what its inputs look like.

    ``z`` is an input of the layer behind the layers that were compressed already, ``x`` the input
    in the same place of the network as it was; one input is what one output is a product with.

    Attributes:
        name: the weight's name.
        bias: the name of the bias that belongs to this layer alone, or None.
        rows: the weight as (groups, rows of a group, columns), float64.
        gram: (groups, columns, columns), the mean of ``z z^T``, around the mean where there is a
            bias that can take up a shift.
        cross: (groups, columns, columns), the mean of ``x z^T`` likewise.
        shift: (groups, columns) mean of ``x``, and of ``z``.
    """

    name: str
    bias: str | None
    rows: _Floats
    gram: _Floats
    cross: _Floats
    shift: tuple[_Floats, _Floats]
    _shape: tuple[int, ...]
    _axes: tuple[int, ...]  # of the weight in the order O I + spatial
    _pieces: int = 1  # that long rows are cut into, each a group

    def dense(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Lay rows (or codes) out as the weight is."""
        moved = [self._shape[axis] for axis in self._axes]
        whole = rows.reshape(-1, self._pieces, *rows.shape[1:]).swapaxes(1, 2)
        return np.transpose(whole.reshape(moved), np.argsort(self._axes))

    def as_rows(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Lay a tensor of the weight's shape out as rows: undoes :meth:`dense`."""
        groups, rows, columns = self.rows.shape
        whole = np.transpose(tensor, self._axes)
        cut = whole.reshape(groups // self._pieces, rows, self._pieces, columns)
        return np.ascontiguousarray(cut.swapaxes(1, 2)).reshape(self.rows.shape)

    def bias_change(self, rows: NDArray[Any]) -> _Floats:
        """Give what the bias must grow by, (outputs,), so that the outputs' means stay."""
        old, new = self.shift
        return np.asarray(
            np.einsum("grc,gc->gr", self.rows, old) - np.einsum("grc,gc->gr", rows, new)
        ).ravel()

    def moved_bias(self, bias: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        """Give the bias that takes up the shift of other rows, of its shape and dtype."""
        return (bias + self.bias_change(rows).reshape(bias.shape)).astype(bias.dtype)


class Stream:
    """Evaluates a module binding by binding for all samples at once."""

    def __init__(self, mod: tvm.IRModule, samples: Mapping[str, NDArray[Any]]) -> None:
        self.function = ir.main_function(mod)
        self.values: dict[Any, Any] = {}  # by variable: one value, or a list of one a sample
        self.many: set[Any] = set()
        self.count = len(next(iter(samples.values())))
        self.left = edge.use_counts(self.function)
        for param in self.function.params:
            self.values[param] = list(samples[edge.var_name(param)])
            self.many.add(param)
        for binding in ir.bindings(self.function):  # a bias stands behind its layer
            if not list(edge.variables_in(binding.value)):
                name = edge.var_name(binding.var)
                self.values[binding.var] = evaluate(binding.value, {}, name)

    def step(self, binding: Any) -> None:
        """Evaluate one binding."""
        variables = list(edge.variables_in(binding.value))
        name = edge.var_name(binding.var)
        if not variables:
            return
        if not any(var in self.many for var in variables):
            self.values[binding.var] = evaluate(binding.value, self.values, name)
        else:
            self.values[binding.var] = [
                evaluate(binding.value, self._sample(variables, i), name) for i in range(self.count)
            ]
            self.many.add(binding.var)
        for var in variables:
            self.left[var] -= 1
            if not self.left[var]:  # what nothing uses any more need not be kept for all samples
                self.values.pop(var, None)

    def _sample(self, variables: Sequence[Any], index: int) -> dict[Any, Any]:
        return {v: self.values[v][index] if v in self.many else self.values[v] for v in variables}


def layer_inputs(
    mod: tvm.IRModule,
    inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
    change: Callable[[LayerInputs], Mapping[str, NDArray[Any]]],
    most: int | None = None,
) -> None:
    """Run a module from the front and show every layer that has a weight, with its inputs.

    The module runs twice in step, as it is and with the parameters that ``change`` gives.

    Args:
        mod: a canonical module.
        inputs: samples, as :func:`tvm_compress.targets.reference.run` takes them.
        change: is called once a weight, at its first use, and gives the parameters (the weight, its
            bias) that have other values from then on.
        most: how many samples are looked at, evenly spaced where there are more; None for all.

    Raises:
        DataError: inputs of a wrong name, shape or dtype, or values that are not finite.
        UnsupportedError: an operator without a numpy meaning.
    """
    weights = ir.weights(mod)
    samples = check_samples(input_specs(mod), inputs)
    count = len(next(iter(samples.values())))
    if most is not None and count > most:
        some = np.linspace(0, count - 1, most).round().astype(np.int64)
        samples = {name: value[some] for name, value in samples.items()}
    before, after = Stream(mod, samples), Stream(mod, samples)
    biases = _biases(before.function)
    done: set[str] = set()
    for binding in ir.bindings(before.function):
        call = binding.value
        if isinstance(call, tvm.ir.Call) and len(call.args) == 2:
            name = edge.var_name(call.args[1]) if isinstance(call.args[1], relax.Var) else ""
            if name in weights and name not in done:
                layer = _layer(call, biases.get(binding.var), before, after)
                if layer is not None:
                    done.add(name)
                    new = change(layer)
                    for var in (call.args[1], biases.get(binding.var)):
                        if var is not None and edge.var_name(var) in new:
                            after.values[var] = new[edge.var_name(var)]
        before.step(binding)
        after.step(binding)


def _biases(function: relax.Function) -> dict[Any, Any]:
    """Give the constant that is added to each variable, where it is used for nothing else."""
    uses = edge.use_counts(function)
    constants = {
        b.var for b in ir.bindings(function) if isinstance(b.value, edge.Constant) and uses[b.var]
    }
    return {
        b.value.args[0]: b.value.args[1]
        for b in ir.bindings(function)
        if edge.op_name(b.value) == "relax.add"
        and b.value.args[1] in constants
        and uses[b.value.args[0]] == uses[b.value.args[1]] == 1
    }


def _layer(call: Any, bias: Any, before: Stream, after: Stream) -> LayerInputs | None:
    convolution = edge.op_name(call) in _CONVOLUTIONS
    data, weight = call.args
    value = np.asarray(before.values[weight])
    axes = _row_axes(call, value.ndim)
    if data not in before.many or axes is None:
        return None
    groups = int(call.attrs.groups) if convolution else 1
    moved = np.transpose(value, axes).astype(np.float64)
    rows = moved.reshape(groups, moved.shape[0] // groups, -1)
    gram, cross = (np.zeros((groups, rows.shape[2], rows.shape[2])) for _ in range(2))
    old, new = (np.zeros((groups, rows.shape[2])) for _ in range(2))
    count = 0
    for x, z in zip(before.values[data], after.values[data], strict=True):
        if convolution:
            x, z = (_columns(call, v, moved.shape, groups) for v in (x, z))
        else:
            x, z = _as_rows(x), _as_rows(z)
        gram += np.matmul(z.transpose(0, 2, 1), z)
        cross += np.matmul(x.transpose(0, 2, 1), z)
        old += x.sum(1, dtype=np.float64)
        new += z.sum(1, dtype=np.float64)
        count += x.shape[1]
    gram, cross, old, new = (sums / count for sums in (gram, cross, old, new))
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise DataError(
            f"The inputs of the layer with the weight {edge.var_name(weight)} are infinite, NaN or "
            "so large that their squares are; expected finite numbers: check the samples."
        )
    outputs = moved.shape[0]
    shifts = bias is not None and before.values[bias].size == outputs
    if shifts:
        energy = np.diagonal(gram, axis1=1, axis2=2).copy()
        gram -= new[:, :, None] * new[:, None, :]
        cross -= old[:, :, None] * new[:, None, :]
        # Of an input that never varies rounding is left, of either sign.
        varies = np.diagonal(gram, axis1=1, axis2=2) > _LEAST_VARIANCE * energy
        gram *= varies[:, :, None] & varies[:, None, :]
        cross *= varies[:, None, :]
    name = edge.var_name(bias) if shifts else None
    return LayerInputs(
        edge.var_name(weight), name, rows, gram, cross, (old, new), value.shape, axes
    )


def _row_axes(call: Any, rank: int) -> tuple[int, ...] | None:
    """Give the axes of a weight in the order O I + spatial, or None where it has no such rows."""
    if edge.op_name(call) in _CONVOLUTIONS:
        return axes_between(str(call.attrs.kernel_layout), "OI" + spatial(rank - 2))
    return (1, 0) if edge.op_name(call) == "relax.matmul" and rank == 2 else None


# What is behind a rectifier of a normal variable: square of the mean over mean of the square.
_MEAN_SHARE = 1 / np.pi
# Correlation of the deviations of neighbouring positions; pictures and their features have 0.4 to
# 0.9, the more the earlier in a network.
_NEIGHBOURS = 0.5
# Longer rows are cut, for a Gram matrix grows with the square.
_LONGEST = 2048


def assumed_inputs(mod: tvm.IRModule) -> Iterator[LayerInputs]:
    """Give every layer that has a weight with what its inputs are taken to be without any data.

    All inputs of a layer are taken to be rectified normal variables of one size: their mean square
    is 1, of which ``1 / pi`` is the square of their mean. Channels are independent; within a
    channel the deviations of two positions of a kernel correlate by ``0.5 ** distance``. There is
    no bias to take up a shift: the mean is a part of the Gram matrix, hence errors of a row that
    add up count more than errors that cancel out.
    """
    weights = ir.weights(mod)
    calls: dict[str, Any] = {}
    for binding in ir.bindings(ir.main_function(mod)):
        for arg in binding.value.args if isinstance(binding.value, tvm.ir.Call) else ():
            if isinstance(arg, relax.Var) and edge.var_name(arg) in weights:
                calls.setdefault(edge.var_name(arg), binding.value)
    for name, weight in weights.items():
        value, call = weight.parameter.value, calls[name]
        axes = _row_axes(call, value.ndim)
        groups = int(call.attrs.groups) if edge.op_name(call) in _CONVOLUTIONS else 1
        if axes is None:  # each output's weights still are a row, in an order that tells nothing
            rest = [axis for axis in range(value.ndim) if axis != weight.output_axis]
            axes = (weight.output_axis, *rest)
            moved = np.transpose(value, axes).reshape(value.shape[axes[0]], -1)
        else:
            moved = np.transpose(value, axes)
        inputs, kernel = moved.shape[1], moved.shape[2:]
        pieces = _pieces(inputs, int(np.prod(kernel)))
        gram = assumed_gram((inputs // pieces, *kernel))
        cut = moved.reshape(groups, moved.shape[0] // groups, pieces, -1).swapaxes(1, 2)
        rows = cut.reshape(groups * pieces, -1, len(gram)).astype(np.float64)
        grams = np.broadcast_to(gram, (len(rows), *gram.shape))
        none = np.zeros((len(rows), len(gram)))
        yield LayerInputs(name, None, rows, grams, grams, (none, none), value.shape, axes, pieces)


def _pieces(inputs: int, kernel: int) -> int:
    """Give into how many pieces to cut rows, so that a Gram matrix stays small."""
    divisors = (n for n in range(1, inputs + 1) if inputs % n == 0)
    return next(n for n in divisors if inputs // n * kernel <= _LONGEST or n == inputs)


def assumed_gram(shape: Sequence[int]) -> _Floats:
    """Give the Gram matrix of :func:`assumed_inputs` for ``shape``: inputs, then the kernel's axes.

    >>> assumed_gram((2,)).round(3).tolist()
    [[1.0, 0.318], [0.318, 1.0]]
    """
    places = np.stack(
        np.unravel_index(np.arange(int(np.prod(shape[1:]))), tuple(shape[1:]) or (1,))
    )
    distance = np.linalg.norm(places[:, :, None] - places[:, None], axis=0)
    within = (1 - _MEAN_SHARE) * _NEIGHBOURS**distance
    return np.asarray(_MEAN_SHARE + np.kron(np.eye(shape[0]), within))


def _as_rows(x: NDArray[Any]) -> NDArray[Any]:
    return x.reshape(1, -1, x.shape[-1])


def _columns(call: Any, x: NDArray[Any], kernel: Sequence[int], groups: int) -> NDArray[Any]:
    """Give (groups, places, inputs of a group * taps): what each output is a product with."""
    a = call.attrs
    rank = x.ndim - 2
    x = np.transpose(x, axes_between(str(a.data_layout), "NC" + spatial(rank)))
    x = np.pad(x, [(0, 0), (0, 0), *split_padding([int(p) for p in a.padding])])
    dilation, strides = [int(d) for d in a.dilation], [int(s) for s in a.strides]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel[2:], dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, step) for step in (*strides, *dilation))
    view = view[(slice(None), slice(None), *steps)]
    places = view.shape[2 : 2 + rank]
    view = view.reshape(x.shape[0], groups, x.shape[1] // groups, int(np.prod(places)), -1)
    # (N, groups, inputs, places, taps) -> (groups, N, places, inputs, taps)
    moved = view.transpose(1, 0, 3, 2, 4)
    return moved.reshape(groups, x.shape[0] * int(np.prod(places)), -1)
