"""The integer form of each operator of a quantised network: the tables of ``to-integers``.

A form is called with a quantize's float argument and gives the int8 expression, or None where the
operator has no integer form as it stands. With ``double`` rounding each form is TensorFlow Lite's
arithmetic (Jacob et al., arXiv 1712.05877, and the published reference kernels); with ``single``
it is the cheapest one that rounds once.

What fits none of :data:`FORMS` may still be a function of one tensor
(:func:`tvm_compress.integer_forms.tables.table`) or a move of integers (:data:`MOVES`).
"""

from __future__ import annotations

from tvm_compress.integer_forms import elementwise, means, moves, products, tables
from tvm_compress.integer_forms.quantised import Form, Move

__all__ = ["FORMS", "MOVES"]

_FORMS: dict[Form, str] = {
    products.product: "nn.conv1d nn.conv2d nn.conv3d matmul",
    elementwise.add: "add",
    elementwise.subtract: "subtract",
    elementwise.multiply: "multiply",
    elementwise.extreme: "maximum minimum",
    elementwise.concat: "concat",
    means.pooled: """
    nn.avg_pool1d nn.avg_pool2d nn.avg_pool3d
    nn.adaptive_avg_pool1d nn.adaptive_avg_pool2d nn.adaptive_avg_pool3d
    """,
    means.mean: "mean",
    means.total: "sum",
    means.resized: "image.resize2d",
    tables.softmax: "nn.softmax",
}

_MOVES: dict[Move, str] = {
    moves.alike: """
    reshape permute_dims strided_slice squeeze expand_dims flatten flip tile repeat take
    broadcast_to split nn.max_pool1d nn.max_pool2d nn.max_pool3d max min nn.batch_flatten
    """,
    moves.relu: "nn.relu",
    moves.pad: "nn.pad",
    moves.resize_nearest: "image.resize2d",
}

#: The form of each operator that computes, by the operator's name.
FORMS = {f"relax.{name}": form for form, names in _FORMS.items() for name in names.split()}

#: How each operator moves integers of one tensor, or picks among them: scale and zero point stay.
MOVES = {f"relax.{name}": move for move, names in _MOVES.items() for name in names.split()}
