"""How a command ends: its exit code, and one sentence where it failed.

0: done. 1: the user can mend it, wrong usage included. 2: a fault of ours. 130: interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from tvm_compress.errors import InputError

__all__ = ["FAULT", "INTERRUPTED", "MISTAKE", "TRACEBACK_VARIABLE", "Program"]

MISTAKE, FAULT, INTERRUPTED = 1, 2, 130
TRACEBACK_VARIABLE = "TVM_COMPRESS_TRACEBACK"


class Program(TyperGroup):
    """The commands as one program with our exit codes."""

    show_traceback = False

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit."""
        self.show_traceback = bool(os.environ.get(TRACEBACK_VARIABLE))
        try:
            # Otherwise Typer itself would end the program, with codes of its own.
            code = super().main(
                args=args,
                prog_name=prog_name or "tvm-compress",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            sys.stdout.flush()  # here, where a reader that has gone can still be met
        except (Exception, KeyboardInterrupt) as error:
            code = self._explain(error)
        sys.exit(code if isinstance(code, int) else 0)

    def _explain(self, error: BaseException) -> int:
        """Say on stderr what went wrong and give the exit code."""
        if isinstance(error, KeyboardInterrupt | typer.Abort):
            typer.echo("Interrupted.", err=True)
            return INTERRUPTED
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone (`| head`); Python would complain again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return MISTAKE
        if self.show_traceback:
            traceback.print_exception(error)
        usage = getattr(error, "format_message", None)  # an exception of Click's family
        if usage is not None:
            typer.echo(_usage_sentence(error, str(usage())), err=True)
            return MISTAKE
        if isinstance(error, InputError):
            typer.echo(f"Error: {error}", err=True)
            return MISTAKE
        if isinstance(error, OSError) and error.filename is not None:
            typer.echo(
                f"Error: {error.filename} cannot be read or written ({error.strerror}); choose "
                "another path or change its permissions.",
                err=True,
            )
            return MISTAKE
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        typer.echo(
            f"This is a fault of tvm-compress, not yours ({what}); run "
            "`tvm-compress --traceback ...` and report what it prints.",
            err=True,
        )
        return FAULT


def _usage_sentence(error: BaseException, message: str) -> str:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        return message or str(context.get_help() if context else "")
    command = context.command_path if context else "tvm-compress"
    return f"Error: {message.rstrip('.')}; `{command} --help` shows the usage."
