"""Fixed-width bit strings: the bytes under every packed layout.

Value ``i`` of width ``bits`` occupies bits ``i*bits .. (i+1)*bits - 1`` of the string, and bit
``k`` of the string is bit ``k % 8`` of byte ``k // 8`` (least significant bit first). Eight values
always fill exactly ``bits`` bytes, which is what both functions below work by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import DataError, OptionError

__all__ = [
    "WEIGHT_DTYPES",
    "check_codes",
    "check_matrix",
    "check_weights",
    "check_width",
    "pack_bits",
    "unpack_bits",
]

# What weights that share no centroids may be: those of float networks, and of networks in integers.
WEIGHT_DTYPES = (np.float32, np.int8, np.int16)

# Groups of eight values worked on at once: the uint32 temporaries stay at a few MB, inside cache,
# whatever the size of the tensor.
_CHUNK_GROUPS = 1 << 16


def check_width(name: str, value: int, low: int, high: int) -> None:
    """Raise :class:`OptionError` unless the whole number ``value`` lies in ``low..high``."""
    if not isinstance(value, int | np.integer) or not low <= value <= high:
        raise OptionError(
            f"{name} is {value!r}; expected a whole number from {low} to {high}. "
            f"Choose a {name} in that range."
        )


def check_matrix(what: str, array: object, *dtypes: type[np.generic]) -> None:
    """Raise :class:`DataError` unless ``array`` is a non-empty matrix of one of ``dtypes``.

    Args:
        what: The plural that the message begins with ("codes", "weights").
        array: Any object; accepted is a numpy array (rows, cols) with fewer than 2**32 elements,
            so that every index into it fits the uint32 of the C side.
        dtypes: The element types that are taken.
    """
    names = [np.dtype(dtype).name for dtype in dtypes]
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(
            f"The {what} are {found}; expected a numpy array of "
            f"{' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}. "
            f"Convert them with numpy.asarray(..., dtype=numpy.{names[0]})."
        )
    if array.ndim != 2 or array.size == 0:
        raise DataError(
            f"The {what} have shape {array.shape}; expected two dimensions (rows, cols), both at "
            "least 1. Reshape them to one row an output channel."
        )
    if array.size >= 2**32:
        raise DataError(
            f"The {what} have {array.size} elements; expected fewer than 2**32, for the packed "
            "form counts in uint32. Split the matrix by rows."
        )


def check_weights(weights: NDArray[Any]) -> None:
    """Raise :class:`DataError` unless ``weights`` are a non-empty matrix of finite numbers.

    Args:
        weights: Any object; accepted is a numpy array as of :func:`check_matrix`, of float32, int8
            or int16.
    """
    check_matrix("weights", weights, *WEIGHT_DTYPES)
    if not np.isfinite(weights).all():
        raise DataError(
            "The weights hold NaN or infinity; expected finite numbers. Mend the model before it "
            "is packed."
        )


def check_codes(codes: NDArray[np.uint8], bits: int) -> None:
    """Raise :class:`DataError` when a code of the uint8 matrix (rows, cols) needs more bits."""
    if int(codes.max()) >> bits:
        row, col = divmod(int(codes.argmax()), codes.shape[1])
        raise DataError(
            f"The code at row {row}, column {col} is {codes[row, col]}; expected at most "
            f"{2**bits - 1}, the largest of {bits} bits. Pack with more bits or share the weights "
            "into fewer centroids."
        )


def pack_bits(values: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint8]:
    """Pack unsigned values into a bit string, least significant bit first.

    Args:
        values: Array (count,) of any unsigned integer dtype, each value below ``2**bits``.
        bits: Width of a value, 1 to 16.

    Returns:
        Array (ceil(count * bits / 8),) of uint8; unused bits of the last byte are zero.

    Raises:
        OptionError: ``bits`` is outside 1..16.
        DataError: ``values`` has another shape or dtype, or a value that needs more bits.

    >>> pack_bits(np.array([1, 2, 3, 4], np.uint8), 4).tolist()  # low nibble first
    [33, 67]
    """
    check_width("bits", bits, 1, 16)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "u":
        found = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else ""
        raise DataError(
            f"The values to pack are {found or type(values).__name__}; expected a one-dimensional "
            "numpy array of unsigned integers. Flatten it and convert it to uint8 or uint16."
        )
    count = values.size
    if count and int(values.max()) >> bits:
        at = int(values.argmax())
        raise DataError(
            f"Value {at} to pack is {values[at]}; expected at most {2**bits - 1}, the largest of "
            f"{bits} bits. Use more bits."
        )
    groups = -(-count // 8)
    packed = np.zeros((groups, bits), np.uint8)
    for begin in range(0, groups, _CHUNK_GROUPS):
        end = min(begin + _CHUNK_GROUPS, groups)
        chunk = values[8 * begin : 8 * end]
        block = np.zeros((8, end - begin), np.uint32)
        if chunk.size == 8 * (end - begin):
            block[:] = chunk.reshape(-1, 8).T
        else:
            block.T.flat[: chunk.size] = chunk
        for i in range(8):
            byte, shift = divmod(i * bits, 8)
            spread = block[i] << np.uint32(shift)
            for k in range(-(-(shift + bits) // 8)):
                # Narrowing to uint8 keeps the low byte, which is the one meant.
                packed[begin:end, byte + k] |= (spread >> np.uint32(8 * k)).astype(np.uint8)
    return packed.reshape(-1)[: -(-count * bits // 8)]


def unpack_bits(
    packed: NDArray[np.uint8], bits: int, count: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read the first ``count`` values of a bit string; the inverse of :func:`pack_bits`.

    Args:
        packed: Array (n,) of uint8, n at least ceil(count * bits / 8); further bytes are ignored.
        bits: Width of a value, 1 to 16.
        count: Number of values, 0 or more.

    Returns:
        Array (count,), uint8 up to 8 bits, else uint16.

    Raises:
        OptionError: ``bits`` is outside 1..16 or ``count`` is negative.
        DataError: ``packed`` has another shape or dtype, or is too short.

    >>> unpack_bits(np.array([33, 67], np.uint8), 4, 4).tolist()
    [1, 2, 3, 4]
    """
    check_width("bits", bits, 1, 16)
    if not isinstance(count, int | np.integer) or count < 0:
        raise OptionError(
            f"count is {count!r}; expected a whole number, 0 or more. Pass the number of values "
            "that were packed."
        )
    if not isinstance(packed, np.ndarray) or packed.ndim != 1 or packed.dtype != np.uint8:
        found = f"{packed.dtype} of shape {packed.shape}" if isinstance(packed, np.ndarray) else ""
        raise DataError(
            f"The packed data is {found or type(packed).__name__}; expected a one-dimensional "
            "numpy array of uint8. Pass what pack_bits returned."
        )
    need = -(-count * bits // 8)
    if packed.size < need:
        raise DataError(
            f"The packed data has {packed.size} bytes; expected at least {need} for {count} values "
            f"of {bits} bits. The data is cut off: read it again from its source."
        )
    groups = -(-count // 8)
    out = np.empty((groups, 8), np.uint8 if bits <= 8 else np.uint16)
    mask = np.uint32(2**bits - 1)
    for begin in range(0, groups, _CHUNK_GROUPS):
        end = min(begin + _CHUNK_GROUPS, groups)
        chunk = packed[begin * bits : min(end * bits, need)]
        block = np.zeros((bits, end - begin), np.uint32)
        if chunk.size == block.size:
            block[:] = chunk.reshape(-1, bits).T
        else:
            block.T.flat[: chunk.size] = chunk
        for i in range(8):
            byte, shift = divmod(i * bits, 8)
            word = block[byte].copy()
            for k in range(1, -(-(shift + bits) // 8)):
                word |= block[byte + k] << np.uint32(8 * k)
            out[begin:end, i] = (word >> np.uint32(shift)) & mask
    return out.reshape(-1)[:count]
