"""One-dimensional k-means: weights that share few values.

``share`` turns a weight tensor into codes and centroids, the two arguments of the operator
``tvm_compress.codebook``; ``kmeans_1d`` is the clustering alone. The source is Deep Compression
(arXiv 1510.00149, section 3) with its three starts of Lloyd's iteration, beside which stands the
exact optimum, since in one dimension a cluster is a range of the sorted values and dynamic
programming finds the best ranges.

The road of a tensor: values -> points (the sorted distinct values with their multiplicities, or
for large tensors the means of some 100 000 fine bins) -> centroids (dynamic programming or Lloyd
on the points) -> two Lloyd steps on the values themselves if the points were bins -> assignment of
each value to its nearest centroid. Large tensors are read in pieces, so that the extra memory does
not grow with the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError

__all__ = ["METHODS", "Method", "kmeans_1d", "share", "share_integers", "squared_error"]

Method: TypeAlias = Literal["optimal", "linear", "density", "random"]
METHODS: tuple[Method, ...] = get_args(Method)

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.intp]

# A piece of 64k float32 values stays in the second-level cache through all the steps on it.
_PIECE = 1 << 16
# Up to here sorting is cheap: the points are the distinct values and nothing is approximated but
# the dynamic programme, and that only where more than _EXACT_POINTS of them are distinct.
_SORTED_SIZE = 1 << 20
_EXACT_POINTS = 1 << 15
_GROUPS = 1 << 14
_FINE_BINS = 1 << 18
_REFINING_STEPS = 2
# Lloyd ends by itself, since the cost falls at each step and partitions are finite; the limit
# guards against two partitions whose costs differ by less than rounding.
_LLOYD_STEPS = 10_000


def share(
    weights: NDArray[np.float32],
    bits: int,
    *,
    method: Method = "optimal",
    keep_zeros: bool = True,
    seed: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Share the values of a weight tensor: codes into a codebook of ``2**bits`` centroids.

    Code 0 means exactly 0.0 and ``centroids[0]`` is always 0.0. A weight that is 0.0 (of either
    sign) gets code 0 and no other weight does, so the sparsity of a pruned tensor is neither lost
    nor raised. The other ``2**bits - 1`` centroids are free; they ascend over the codes from 1.
    Where there are fewer distinct non-zero weights than free centroids, each keeps its own value
    and the trailing centroids are 0.0 and unused. An empty tensor gives empty codes.

    Args:
        weights: Float32, any shape, no NaN or infinity.
        bits: Bits of a code, 1 to 8.
        method: How the centroids are found, see ``kmeans_1d``.
        keep_zeros: If False, zeros are clustered like any other weight and code 0 stays unused.
        seed: Seed of the method ``random``; the others do not use it.

    Returns:
        The codes, uint8 of the weights' shape, and the centroids, float32 of shape
        ``(2**bits,)``. A non-zero weight has the code of its nearest free centroid; half-way
        between two it has the lower code.

    Raises:
        OptionError: For bits outside 1 to 8, an unknown method or a negative seed.
        DataError: For another dtype, and for weights that are NaN or infinite.

    Source: Deep Compression (arXiv 1510.00149), section 3.

    >>> codes, centroids = share(np.array([[0, 1, 1.5], [-2, 5, 0]], "float32"), 2)
    >>> codes
    array([[0, 2, 2],
           [1, 3, 0]], dtype=uint8)
    >>> centroids
    array([ 0.  , -2.  ,  1.25,  5.  ], dtype=float32)
    """
    if not _is_integer(bits) or not 1 <= bits <= 8:
        raise OptionError(
            f"share: bits is {bits!r}; expected an integer from 1 to 8. "
            "Choose 4 for 16 centroids, 8 for the closest fit."
        )
    _check_method(method, seed)
    flat = _flat(weights, "share", "weights")
    free = _centroids(flat, 2**bits - 1, method, seed, skip_zeros=keep_zeros)
    centroids = np.zeros(2**bits, np.float32)
    centroids[1 : 1 + free.size] = free
    codes = np.empty(flat.shape, np.uint8)
    bounds = _bounds(free)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        code = _nearest(piece, bounds)
        code += 1
        if keep_zeros:
            code *= piece != 0
        codes[start : start + _PIECE] = code
    return codes.reshape(weights.shape), centroids


def share_integers(
    weights: NDArray[np.int8],
    scales: NDArray[np.float64],
    bits: int,
    *,
    method: Method = "optimal",
    seed: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Share the values of an int8 tensor whose channels stand in units of their own.

    What counts is the squared error of ``scales * weights``. Code 0 is the zero centroid and means
    what :func:`share` says; the other centroids are whole numbers but zero.

    Args:
        weights: int8, any shape.
        scales: positive, broadcasts to the weights.
        bits: Bits of a code, 1 to 8.
        method: How the centroids are found, see ``kmeans_1d``.
        seed: Seed of the method ``random``.

    Returns:
        The codes, uint8 of the weights' shape, and the centroids, int8 of shape ``(2**bits,)``.

    >>> weights, scales = np.array([[0, 10, 12], [0, 10, 20]], "int8"), np.array([[1.0], [3.0]])
    >>> share_integers(weights, scales, 1)
    (array([[0, 1, 1],
           [0, 1, 1]], dtype=uint8), array([ 0, 15], dtype=int8))
    """
    _check_method(method, seed)
    flat = weights.reshape(-1).astype(np.int64)
    worth = np.broadcast_to(np.square(scales), weights.shape).reshape(-1)
    kept = flat != 0
    total = np.bincount(flat[kept] + 128, weights=worth[kept], minlength=256).astype(np.float64)
    used = np.flatnonzero(total)
    # Lloyd's steps take a point for no less than one value.
    counts = total[used] / total[used].min(initial=np.inf)
    points, k = _Points((used - 128).astype(np.float64), counts, exact=True), 2**bits - 1
    if used.size <= k:
        found = points.values
    elif method == "optimal":
        found = _optimal(points, k)
    else:
        found = _lloyd(points, _start(points, k, method, seed))
    whole = np.rint(found)
    # A centroid beside zero must not become it: no weight that is not zero has code 0.
    whole = np.unique(np.where(whole == 0, np.where(found < 0, -1, 1), whole)).astype(np.int8)
    centroids = np.zeros(2**bits, np.int8)
    centroids[1 : 1 + whole.size] = whole
    bounds = (whole[1:].astype(np.float64) + whole[:-1]) / 2
    codes = np.where(flat != 0, np.searchsorted(bounds, flat) + 1, 0).astype(np.uint8)
    return codes.reshape(weights.shape), centroids


def kmeans_1d(
    values: NDArray[np.float32], k: int, *, method: Method = "optimal", seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cluster values into at most ``k`` clusters of small summed squared distance.

    The methods are:

    - ``optimal``: the smallest sum of squared distances that there is, for up to 2**20 values of
      which up to 2**15 are distinct. Beyond that the dynamic programme runs over some 2**14 bins
      with exact counts and sums, levelled so that the product of a bin's population and width is
      about equal, and Lloyd steps on finer data follow, which only lower the cost. Then
      ``cost <= optimum + 1/2 * sum(n * w * g)`` over the at most ``k - 1`` bins that a boundary
      of the optimum cuts (once each), with ``n`` the values in the bin, ``w`` its width and ``g``
      the distance of the optimal centroids on its two sides. (A cut bin given to one side costs
      each value on the other side ``2 * g`` times its distance to the cut; with ``a`` values up to
      ``u`` away on one side and ``n - a`` up to ``w - u`` on the other, the cheaper of the two
      costs at most ``2 * g * n * w / 4``.) Bell-shaped weights stay far below 0.1 %.
    - ``linear``, ``density``, ``random``: Lloyd's iteration from centroids that are spaced
      equally from minimum to maximum, that are spaced equally over the cumulative distribution
      (the quantiles ``(i + 1/2) / k``), or that are ``k`` distinct values drawn at random with
      their frequency. It runs to convergence on up to 2**20 values; more are summarized by fine
      bins first, and at most two steps on the values themselves follow. An empty cluster keeps
      its centroid.

    Where no more than ``k`` values are distinct, every method returns these values.

    Args:
        values: Float32, any shape, no NaN or infinity.
        k: Number of clusters, 1 to 256.
        method: One of ``METHODS``.
        seed: Seed of the method ``random``.

    Returns:
        The assignment, uint8 of the values' shape, and the centroids, float32, ascending, of
        shape ``(min(k, distinct values),)``. Each value is assigned to its nearest centroid,
        half-way between two to the lower.

    Raises:
        OptionError: For ``k`` outside 1 to 256, an unknown method or a negative seed.
        DataError: For another dtype, and for values that are NaN or infinite.

    >>> kmeans_1d(np.array([9, 0, 1, 10], "float32"), 2)
    (array([1, 0, 0, 1], dtype=uint8), array([0.5, 9.5], dtype=float32))
    """
    if not _is_integer(k) or not 1 <= k <= 256:
        raise OptionError(
            f"kmeans_1d: k is {k!r}; expected an integer from 1 to 256, "
            "as an assignment is one byte. Ask for fewer clusters."
        )
    _check_method(method, seed)
    flat = _flat(values, "kmeans_1d", "values")
    centroids = _centroids(flat, k, method, seed, skip_zeros=False)
    bounds = _bounds(centroids)
    assignment = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        assignment[piece] = _nearest(flat[piece], bounds)
    return assignment.reshape(values.shape), centroids


def squared_error(
    values: NDArray[np.float32], assignment: NDArray[np.uint8], centroids: NDArray[np.float32]
) -> float:
    """Give the sum of squared distances of the values from their centroids, in float64.

    Args:
        values: Float32, any shape.
        assignment: uint8 indices into the centroids, of the values' shape.
        centroids: Float32 vector.

    Raises:
        DataError: If the assignment's shape is not that of the values.

    >>> values = np.array([9, 0, 1, 10], "float32")
    >>> squared_error(values, *kmeans_1d(values, 2))
    1.0
    """
    if values.shape != assignment.shape:
        raise DataError(
            f"squared_error: the assignment has shape {assignment.shape} and the values "
            f"{values.shape}; expected the same shape. Pass the arrays of one clustering."
        )
    flat, index = values.reshape(-1), assignment.reshape(-1)
    table = centroids.astype(np.float64)
    total = 0.0
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        distance = flat[piece] - table[index[piece]]
        total += float(distance @ distance)
    return total


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_method(method: str, seed: int) -> None:
    if method not in METHODS:
        raise OptionError(
            f"The clustering method is {method!r}; expected one of {', '.join(METHODS)}. "
            "Choose optimal if in doubt."
        )
    if not _is_integer(seed) or seed < 0:
        raise OptionError(
            f"The clustering seed is {seed!r}; expected an integer from 0. Use 0 if in doubt."
        )


def _flat(array: NDArray[np.float32], function: str, what: str) -> NDArray[np.float32]:
    dtype = getattr(array, "dtype", type(array).__name__)
    if dtype != np.float32:
        raise DataError(
            f"{function}: the {what} are {dtype}; expected a float32 array. Convert them with "
            "astype('float32'), and share weights before they are quantized."
        )
    flat = array.reshape(-1)
    bad = sum(piece.size - int(np.isfinite(piece).sum()) for piece in _pieces(flat))
    if bad:
        raise DataError(
            f"{function}: {bad} of {flat.size} {what} are NaN or infinite; expected finite "
            "numbers. Check how the network was trained or converted, then try again."
        )
    return flat


def _pieces(flat: NDArray[np.float32], *, skip_zeros: bool = False) -> Iterator[NDArray[Any]]:
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if skip_zeros and np.count_nonzero(piece) < piece.size:
            piece = piece[piece != 0]
        yield piece


def _bounds(centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give float32 bounds so that ``x > bounds[j]`` is exactly "beyond the midpoint j"."""
    middle = (centroids[:-1].astype(np.float64) + centroids[1:]) / 2
    bounds = middle.astype(np.float32)
    # Rounded up, the bound itself would be a value beyond the midpoint and yet not above it.
    return np.where(bounds > middle, np.nextafter(bounds, np.float32(-np.inf)), bounds)


def _nearest(piece: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.uint8]:
    # One vector comparison a bound beats binary search threefold even for 255 bounds.
    index = np.zeros(piece.shape, np.uint8)
    for bound in bounds:
        index += (piece > bound).view(np.uint8)
    return index


@dataclass(frozen=True)
class _Points:
    """Sorted points that stand for the values.

    Attributes:
        values: Distinct values or means of bins, ascending, float64 of shape (p,).
        counts: How many values each point stands for, float64 of shape (p,).
        exact: Whether each point stands for equal values.
    """

    values: _Floats
    counts: _Floats
    exact: bool


@dataclass(frozen=True)
class _Prefix:
    """Prefix sums over sorted points: differences give any range's count, sum and squares.

    Values are taken from their median, and sums run from the median outward, so that the sums
    over a range hold nothing larger than the range itself: outliers cost no digits elsewhere.
    """

    origin: float
    count: _Floats
    sum: _Floats
    square: _Floats

    @classmethod
    def of(cls, points: _Points) -> _Prefix:
        total = np.concatenate([[0.0], np.cumsum(points.counts)])
        middle = int(np.searchsorted(total[1:], total[-1] / 2))
        origin = float(points.values[middle])
        centred = points.values - origin

        def outward(terms: _Floats) -> _Floats:
            left = -np.cumsum(terms[:middle][::-1])[::-1]
            return np.concatenate([left, [0.0], np.cumsum(terms[middle:])])

        weighted = points.counts * centred
        return cls(origin, total, outward(weighted), outward(weighted * centred))

    def cost(self, start: _Ints, stop: _Ints) -> _Floats:
        """Give the squared distances of points ``start <= i < stop`` from their mean."""
        return _range_cost(
            self.count[stop] - self.count[start],
            self.sum[stop] - self.sum[start],
            self.square[stop] - self.square[start],
        )


def _range_cost(count: _Floats, total: _Floats, square: _Floats) -> _Floats:
    """Sum of (x - mean)^2 = sum of x^2 - (sum of x)^2 / n, never under 0 by rounding."""
    total *= total
    total /= count
    square -= total
    return np.maximum(square, 0.0, out=square)


def _centroids(
    flat: NDArray[np.float32], k: int, method: Method, seed: int, *, skip_zeros: bool
) -> NDArray[np.float32]:
    points = _summarize(flat, skip_zeros=skip_zeros)
    if points.values.size <= k:
        return points.values.astype(np.float32)
    if method == "optimal":
        centroids = _optimal(points, k)
    else:
        centroids = _lloyd(points, _start(points, k, method, seed))
    if not points.exact:
        for _ in range(_REFINING_STEPS):
            refined = _refine(flat, centroids, skip_zeros=skip_zeros)
            if np.array_equal(refined, centroids):
                break
            centroids = refined
    return centroids.astype(np.float32)


def _summarize(flat: NDArray[np.float32], *, skip_zeros: bool) -> _Points:
    if flat.size <= _SORTED_SIZE:
        if skip_zeros:
            flat = flat[flat != 0]
        values, counts = np.unique(flat, return_counts=True)
        return _Points(values.astype(np.float64), counts.astype(np.float64), exact=True)
    return _histogram(flat, skip_zeros=skip_zeros)


def _histogram(flat: NDArray[np.float32], *, skip_zeros: bool) -> _Points:
    """Summarize by bins whose width follows the values, with exact counts and means.

    The upper 16 bits of a float32 (sign, exponent, 7 bits of the significand) are a coarse bin:
    any scale and any tail is covered without a look at the range. A coarse bin is then split by
    its lower bits into a power of two of equal bins, in proportion to sqrt(population * width):
    equal products of population and width in all bins are the best that the bound of the loss,
    see ``kmeans_1d``, can get from a number of bins.
    """
    coarse = np.zeros(1 << 16, np.int64)
    for piece in _pieces(flat, skip_zeros=skip_zeros):
        coarse += np.bincount(piece.view(np.uint32) >> np.uint32(16), minlength=1 << 16)
    used = np.flatnonzero(coarse)
    pattern = used.astype(np.uint32) << np.uint32(16)
    width = (pattern | np.uint32(0xFFFF)).view(np.float32).astype(np.float64)
    width = np.abs(width - pattern.view(np.float32))
    wanted = np.sqrt(coarse[used] * width)
    wanted *= _FINE_BINS / (wanted.sum() or 1.0)
    split = np.zeros(1 << 16, np.uint32)
    split[used] = np.ceil(np.log2(np.clip(wanted, 1, 1 << 16))).astype(np.uint32)
    sizes = np.where(coarse > 0, np.int64(1) << split.astype(np.int64), 0)
    base = np.cumsum(sizes) - sizes
    shift = np.uint32(16) - split

    bins = int(sizes.sum())
    counts, sums = np.zeros(bins, np.int64), np.zeros(bins)
    for piece in _pieces(flat, skip_zeros=skip_zeros):
        pattern = piece.view(np.uint32)
        upper = pattern >> np.uint32(16)
        index = base[upper] + ((pattern & np.uint32(0xFFFF)) >> shift[upper])
        # Unlike bincount this touches only the bins of the piece, not the whole table each time.
        np.add.at(counts, index, 1)
        np.add.at(sums, index, piece.astype(np.float64))
    used = np.flatnonzero(counts)
    means = sums[used] / counts[used]
    # Negative bins count upward from zero; one sort puts all bins in the order of their values.
    order = np.argsort(means, kind="stable")
    return _Points(means[order], counts[used][order].astype(np.float64), exact=False)


def _group(points: _Points, groups: int) -> _Ints:
    """Give the first point of each group; groups level the product of population and width."""
    steps = np.sqrt(np.maximum(points.counts[:-1], points.counts[1:]) * np.diff(points.values))
    position = np.concatenate([[0.0], np.cumsum(steps)])
    label = np.floor(position * (groups / position[-1]))
    return np.flatnonzero(np.concatenate([[True], label[1:] != label[:-1]]))


def _optimal(points: _Points, k: int) -> _Floats:
    """Give the centroids of the best ``k`` ranges; see ``kmeans_1d`` for more than 2**15 points."""
    prefix = _Prefix.of(points)
    if points.values.size <= _EXACT_POINTS:
        cuts = _best_ranges(prefix, k)
        return _means(prefix, cuts)
    starts = np.append(_group(points, max(_GROUPS, k)), points.values.size)
    grouped = _Prefix(
        prefix.origin, prefix.count[starts], prefix.sum[starts], prefix.square[starts]
    )
    return _lloyd(points, _means(grouped, _best_ranges(grouped, k)))


def _means(prefix: _Prefix, cuts: _Ints) -> _Floats:
    return prefix.origin + np.diff(prefix.sum[cuts]) / np.diff(prefix.count[cuts])


def _best_ranges(prefix: _Prefix, k: int) -> _Ints:
    """Cut the points into ``k`` ranges of least cost; give the ``k + 1`` cuts from 0 to p.

    ``cost[j][i] = min over m of cost[j - 1][m] + cost of points m..i``. The best ``m`` grows
    with ``i`` (the cost of a range obeys the quadrangle inequality), so once every second row is
    known, the rows between them search only between their neighbours' answers: O(p log p) for a
    layer, and all rows of a level of this halving are one vector operation.
    """
    size = prefix.count.size - 1
    ends = np.arange(size + 1)
    cost = np.zeros(size + 1)
    cost[1:] = prefix.cost(np.zeros(size, np.intp), ends[1:])
    layers: list[NDArray[np.int32]] = []
    for layer in range(2, k + 1):
        # The last layer is asked for all points only; each earlier range needs one point left.
        first = size if layer == k else layer
        rows = size - (k - layer) - first + 1
        best = np.full(size + 1, -1, np.int32)
        new = np.full(size + 1, np.inf)
        stride = 1 << (rows.bit_length() - 1)
        while stride:
            row = np.arange(stride - 1, rows, 2 * stride) + first
            low = np.full(row.shape, layer - 1)
            low[1:] = best[row[1:] - stride]
            high = row - 1
            inner = row + stride < first + rows
            high[inner] = np.minimum(high[inner], best[row[inner] + stride])
            best[row], new[row] = _best_of(prefix, cost, row, low, high)
            stride //= 2
        layers.append(best)
        cost = new
    cuts = [size]
    for best in reversed(layers):
        cuts.append(int(best[cuts[-1]]))
    return np.array([0, *reversed(cuts)], np.intp)


def _best_of(
    prefix: _Prefix, cost: _Floats, row: _Ints, low: _Ints, high: _Ints
) -> tuple[_Ints, _Floats]:
    """For each row give the start in ``low..high`` of its last range, and the cost with it."""
    lengths = high - low + 1
    offsets = np.cumsum(lengths) - lengths
    start = np.arange(int(lengths.sum())) + np.repeat(low - offsets, lengths)
    total = _range_cost(
        np.repeat(prefix.count[row], lengths) - prefix.count[start],
        np.repeat(prefix.sum[row], lengths) - prefix.sum[start],
        np.repeat(prefix.square[row], lengths) - prefix.square[start],
    )
    total += cost[start]
    least = np.minimum.reduceat(total, offsets)
    hits = np.flatnonzero(total == np.repeat(least, lengths))
    return start[hits[np.searchsorted(hits, offsets)]], least


def _start(points: _Points, k: int, method: Method, seed: int) -> _Floats:
    """Give the first centroids, ascending, by one of the three ways of Deep Compression."""
    if method == "linear":
        return np.linspace(points.values[0], points.values[-1], k)
    total = np.cumsum(points.counts)
    if method == "density":
        index: _Ints = np.searchsorted(total, (np.arange(k) + 0.5) / k * total[-1])
        quantiles: _Floats = points.values[index]
        return quantiles
    generator = np.random.default_rng(seed)
    chosen = generator.choice(
        points.values.size, k, replace=False, p=points.counts / total[-1], shuffle=False
    )
    return cast(_Floats, np.sort(points.values[chosen]))


def _lloyd(points: _Points, centroids: _Floats) -> _Floats:
    """Run Lloyd's iteration on the points to convergence."""
    prefix = _Prefix.of(points)
    previous: _Ints | None = None
    for _ in range(_LLOYD_STEPS):
        cuts = _cuts(points, centroids)
        if previous is not None and np.array_equal(cuts, previous):
            break
        centroids, previous = _lloyd_step(prefix, cuts, centroids), cuts
    return centroids


def _cuts(points: _Points, centroids: _Floats) -> _Ints:
    middle = (centroids[:-1] + centroids[1:]) / 2
    inner = np.searchsorted(points.values, middle, side="right")
    return np.concatenate([[0], inner, [points.values.size]])


def _lloyd_step(prefix: _Prefix, cuts: _Ints, centroids: _Floats) -> _Floats:
    """Move each centroid to the mean of its range; an empty range keeps its centroid.

    The centroids stay sorted: old and new one both lie in the cell between the same midpoints.
    """
    counts, sums = np.diff(prefix.count[cuts]), np.diff(prefix.sum[cuts])
    means = prefix.origin + sums / np.maximum(counts, 1)
    return np.where(counts > 0, means, centroids)


def _refine(flat: NDArray[np.float32], centroids: _Floats, *, skip_zeros: bool) -> _Floats:
    """Make one Lloyd step on the values themselves."""
    bounds = _bounds(centroids.astype(np.float32))
    counts, sums = np.zeros(centroids.size, np.int64), np.zeros(centroids.size)
    for piece in _pieces(flat, skip_zeros=skip_zeros):
        index = _nearest(piece, bounds)
        counts += np.bincount(index, minlength=centroids.size)
        sums += np.bincount(index, weights=piece, minlength=centroids.size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
