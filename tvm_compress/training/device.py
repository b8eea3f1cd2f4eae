"""Where torch computes: on the processor, or on a GPU that torch finds."""

from __future__ import annotations

import torch
from torch import Tensor

from tvm_compress.errors import OptionError

__all__ = ["find_device", "moved"]


def find_device(name: str) -> torch.device:
    """Give the device of a name.

    Args:
        name: ``cpu``, ``cuda``, or ``cuda:1`` for the second GPU.

    Raises:
        OptionError: another name, or torch finds no such GPU.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise OptionError(
            f"The device is {name!r}; expected cpu, cuda, or cuda with a number, such as cuda:1."
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise OptionError(
            f"The device is {name!r}, and torch {torch.__version__} finds {count} GPUs; expected "
            "one that it finds: use cpu, or install a torch built for the GPU and its driver."
        )
    return device


def moved(
    batch: tuple[list[Tensor], Tensor | dict[str, Tensor]], device: torch.device
) -> tuple[list[Tensor], Tensor | dict[str, Tensor]]:
    """Give inputs and targets of a batch on a device."""
    inputs, targets = batch
    inputs = [x.to(device) for x in inputs]
    if isinstance(targets, Tensor):
        return inputs, targets.to(device)
    return inputs, {name: y.to(device) for name, y in targets.items()}
