"""PyTorch: ``torch.export`` programs by TVM's importer, which is its best one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm

from tvm_compress import edge
from tvm_compress.errors import (
    DataError,
    InputError,
    MissingToolError,
    ModelFormatError,
    UnsupportedError,
)
from tvm_compress.frontends.named import bind_parameters
from tvm_compress.frontends.torch_integers import converters, register_operators

__all__ = ["import_file", "import_program", "takes"]


def takes(source: Any) -> bool:
    """Whether ``source`` is an exported program or a module of torch."""
    import torch

    return isinstance(source, torch.export.ExportedProgram | torch.nn.Module)


def import_file(path: Path) -> tvm.IRModule:
    """Import a ``.pt2`` archive.

    Raises:
        MissingToolError: torch is not installed.
        ModelFormatError: the archive is not one of ``torch.export.save``.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingToolError(
            f"{path} is an archive of PyTorch, and torch is not installed; install the extra: "
            "pip install 'tvm-compress[train]'."
        ) from error
    register_operators()
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        raise ModelFormatError(
            f"{path} is an archive but not one that torch.export.save wrote; expected ONNX, "
            ".tflite, a torch.export program (.pt2), .tcz or a Relax module saved as JSON."
        ) from error
    return import_program(program, None)


def import_program(source: Any, example: Any) -> tvm.IRModule:
    """Import an exported program, or a module with an example input.

    Raises:
        DataError: an ``nn.Module`` without an example.
        UnsupportedError: an operator that the importer does not take.
    """
    import torch

    if isinstance(source, torch.nn.Module):
        if example is None:
            raise DataError(
                "An nn.Module needs an example input; expected load(module, example=tensor)."
            )
        module = source
        args = example if isinstance(example, tuple) else (example,)
        training = source.training
        try:
            source = torch.export.export(source.eval(), args)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UnsupportedError(
                f"torch.export cannot take the module: {lines[0]} Mend the module until "
                "torch.export.export takes it."
            ) from error
        finally:
            module.train(training)
    try:
        mod, params = edge.import_torch(source, converters(source))
    except InputError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"No frontend takes this torch.export program: {lines[-1].strip()} Replace the "
            "operator in the network."
        ) from error
    return bind_parameters(mod, params)
