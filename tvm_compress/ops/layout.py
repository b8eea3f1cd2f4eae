"""Axis order by letters: ``NHWC``, ``OIHW`` and their like."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["axes_between", "spatial"]


def axes_between(source: str, target: str) -> tuple[int, ...]:
    """Give the axes of a transpose that turns ``source`` order into ``target`` order.

    >>> axes_between("NHWC", "NCHW")
    (0, 3, 1, 2)
    """
    if sorted(source) != sorted(target):
        raise ValueError(f"{source} and {target} do not name the same axes.")
    return tuple(source.index(letter) for letter in target)


def spatial(rank: int) -> str:
    """Give the letters of the spatial axes: 1 -> ``W``, 2 -> ``HW``, 3 -> ``DHW``."""
    return "DHW"[3 - rank :]


def split_padding(padding: Sequence[int]) -> list[tuple[int, int]]:
    """Give (before, after) for each spatial axis of Relax's ``[b0, b1, a0, a1]``.

    >>> split_padding([4, 1, 5, 1])
    [(4, 5), (1, 1)]
    """
    rank = len(padding) // 2
    return [(int(padding[i]), int(padding[rank + i])) for i in range(rank)]
