"""``tvm_compress.codebook(codes, centroids)``: a weight whose values are shared.

``w[...] = centroids[codes[...]]``: ``codes`` is uint8 of any shape, ``centroids`` float of shape
``(k,)`` with ``k <= 256``. The result has the shape of the codes and the dtype of the centroids.
Source: Deep Compression (arXiv 1510.00149), section 3. Code 0 is the centroid of the pruned
weights by convention of the passes; the operator itself gives it no special meaning.

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

__all__ = ["CODEBOOK", "codebook", "codebook_numpy"]

CODEBOOK = "tvm_compress.codebook"


def codebook_numpy(codes: NDArray[Any], centroids: NDArray[Any]) -> NDArray[Any]:
    """Give the dense weight: the numpy meaning of the operator.

    >>> codebook_numpy(np.array([[0, 2], [1, 0]], "uint8"), np.array([0, -1.5, 2], "float32"))
    array([[ 0. ,  2. ],
           [-1.5,  0. ]], dtype=float32)
    """
    return np.take(centroids, codes)


def codebook(codes: tvm.ir.Expr, centroids: tvm.ir.Expr) -> tvm.ir.Expr:
    """Build the call: ``codes`` uint8 of any shape, ``centroids`` floating of shape ``(k,)``."""
    return edge.call_op(CODEBOOK, [codes, centroids])


def _infer_type(call: tvm.ir.Expr, builder: relax.BlockBuilder) -> relax.TensorType:
    codes, centroids = (edge.tensor_type(arg) for arg in call.args)
    if edge.dtype_of(codes) != "uint8":
        raise TypeError(f"{CODEBOOK}: the codes are {edge.dtype_of(codes)}; expected uint8.")
    if centroids.ndim != 1:
        raise TypeError(
            f"{CODEBOOK}: the centroids have {centroids.ndim} dimensions; expected a vector."
        )
    size = (edge.static_shape(centroids) or (1,))[0]
    if not 1 <= size <= 256:
        raise TypeError(
            f"{CODEBOOK}: there are {size} centroids; expected 1 to 256, as a code is one byte."
        )
    dtype = edge.dtype_of(centroids)
    if not dtype.startswith("float"):
        raise TypeError(f"{CODEBOOK}: the centroids are {dtype}; expected a floating type.")
    if codes.shape is None:
        return relax.TensorType(dtype=dtype, ndim=codes.ndim)
    return relax.TensorType(codes.shape, dtype)


def _legalize(builder: relax.BlockBuilder, call: tvm.ir.Expr) -> tvm.ir.Expr:
    # An operator and not a call of loops: FoldConstant evaluates what legalises to loops, and would
    # make a dense weight of every codebook. LegalizeOps goes on to legalise the operator.
    # "clip" is never needed, but "fast" prints a warning at every use.
    codes, centroids = call.args
    return relax.op.take(centroids, codes, axis=0, mode="clip")


edge.register_op(
    CODEBOOK,
    "A weight given by codes into a vector of centroids.",
    arguments=[("codes", "uint8 tensor"), ("centroids", "floating vector")],
    infer_type=_infer_type,
    legalize=_legalize,
)
