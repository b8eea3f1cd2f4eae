"""The command line; importing it costs neither TVM nor numpy, so that help comes at once."""

from __future__ import annotations

from tvm_compress.cli.commands import app, main

__all__ = ["app", "main"]
