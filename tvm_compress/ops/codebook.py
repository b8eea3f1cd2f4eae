"""``tvm_compress.codebook(codes, centroids)``: a weight whose values are shared.

``w[...] = centroids[codes[...]]``: ``codes`` is uint8 of any shape, ``centroids`` float of shape
``(k,)`` with ``k <= 256``, or int8 or int16 where the weight is quantised. The result has the shape
of the codes and the dtype of the centroids.
Source: Deep Compression (arXiv 1510.00149), section 3. Code 0 is the centroid of the pruned
weights by convention of the passes; the operator itself gives it no special meaning.

Where parts of a weight have codebooks of their own, ``centroids`` has the shape ``(g_0, ..., g_n,
k)`` with one ``g`` for each axis of the codes, which divides that axis into blocks of equal length:
``w[i_0, ...] = centroids[i_0 // (size_0 / g_0), ..., codes[i_0, ...]]``. So ``(4, 1, 1, 1, 16)`` is
one codebook for each quarter of the output channels of a convolution, without an attribute.

The dense legalisation is a gather, so every stock TVM pipeline compiles a module that holds the
operator, only without the gain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge

__all__ = ["CODEBOOK", "codebook", "codebook_numpy", "flat_codes"]

CODEBOOK = "tvm_compress.codebook"


def codebook_numpy(codes: NDArray[Any], centroids: NDArray[Any]) -> NDArray[Any]:
    """Give the dense weight: the numpy meaning of the operator.

    >>> codebook_numpy(np.array([[0, 2], [1, 0]], "uint8"), np.array([0, -1.5, 2], "float32"))
    array([[ 0. ,  2. ],
           [-1.5,  0. ]], dtype=float32)
    >>> two = np.array([[[0, 1]], [[0, 5]]], "float32")  # a codebook for each row
    >>> codebook_numpy(np.array([[0, 1], [1, 0]], "uint8"), two)
    array([[0., 1.],
           [5., 0.]], dtype=float32)
    """
    return np.take(centroids.reshape(-1), flat_codes(codes, centroids.shape))


def flat_codes(codes: NDArray[Any], centroids_shape: tuple[int, ...]) -> NDArray[Any]:
    """Give codes into the flattened centroids: the codes themselves, or intp where there are parts.

    >>> flat_codes(np.array([[0, 1], [1, 0]], "uint8"), (2, 1, 4))
    array([[0, 1],
           [5, 4]])
    """
    if len(centroids_shape) == 1:
        return codes
    return codes + _offsets(codes.shape, centroids_shape)


def _offsets(shape: tuple[int, ...], centroids_shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Give where the codebook of an element starts; broadcasts to ``shape``."""
    *groups, k = centroids_shape
    first = np.arange(int(np.prod(groups)), dtype=np.intp).reshape(groups) * k
    for axis, (size, count) in enumerate(zip(shape, groups, strict=True)):
        if count > 1:
            first = np.repeat(first, size // count, axis)
    return first


def codebook(codes: tvm.ir.Expr, centroids: tvm.ir.Expr) -> tvm.ir.Expr:
    """Build the call: ``codes`` uint8 of any shape, ``centroids`` of shape ``(k,)``.

    ``centroids`` of shape ``(g_0, ..., g_n, k)`` are a codebook for each block of the codes.
    """
    return edge.call_op(CODEBOOK, [codes, centroids])


def _infer_type(call: tvm.ir.Expr, builder: relax.BlockBuilder) -> relax.TensorType:
    codes, centroids = (edge.tensor_type(arg) for arg in call.args)
    if edge.dtype_of(codes) != "uint8":
        raise TypeError(f"{CODEBOOK}: the codes are {edge.dtype_of(codes)}; expected uint8.")
    if centroids.ndim not in (1, codes.ndim + 1):
        raise TypeError(
            f"{CODEBOOK}: the centroids have {centroids.ndim} dimensions; expected a vector, or "
            f"{codes.ndim + 1} dimensions, one for each of the codes and the last for a codebook."
        )
    *groups, size = edge.static_shape(centroids) or (1,)
    shape = edge.static_shape(codes) or ()
    if any(count < 1 or length % count for length, count in zip(shape, groups, strict=False)):
        raise TypeError(
            f"{CODEBOOK}: the centroids have the blocks {tuple(groups)}; expected divisors of the "
            f"codes' shape {shape}."
        )
    if not 1 <= size <= 256:
        raise TypeError(
            f"{CODEBOOK}: there are {size} centroids; expected 1 to 256, as a code is one byte."
        )
    dtype = edge.dtype_of(centroids)
    if not dtype.startswith("float") and dtype not in ("int8", "int16"):
        raise TypeError(
            f"{CODEBOOK}: the centroids are {dtype}; expected a floating type, int8 or int16."
        )
    if codes.shape is None:
        return relax.TensorType(dtype=dtype, ndim=codes.ndim)
    return relax.TensorType(codes.shape, dtype)


def _legalize(builder: relax.BlockBuilder, call: tvm.ir.Expr) -> tvm.ir.Expr:
    # An operator and not a call of loops: FoldConstant evaluates what legalises to loops, and would
    # make a dense weight of every codebook. LegalizeOps goes on to legalise the operator.
    # "clip" is never needed, but "fast" prints a warning at every use.
    codes, centroids = call.args
    shape, groups = edge.static_shape(codes), edge.static_shape(centroids)
    if groups is not None and shape is not None and len(groups) > 1:
        offsets = edge.constant(_offsets(shape, groups).astype(np.int32))
        codes = relax.op.add(relax.op.astype(codes, "int32"), offsets)
        centroids = relax.op.reshape(centroids, (int(np.prod(groups)),))
    return relax.op.take(centroids, codes, axis=0, mode="clip")


edge.register_op(
    CODEBOOK,
    "A weight given by codes into a vector of centroids.",
    arguments=[("codes", "uint8 tensor"), ("centroids", "vector, or one for each block")],
    infer_type=_infer_type,
    legalize=_legalize,
)
