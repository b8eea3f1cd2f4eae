"""The log of a search: JSON lines, written whole after every job, so that it can go on later.

The first line says whose log it is. The modules of trials lie beside it, each in a file that
:func:`tvm_compress.load` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from tvm_compress.errors import DataError, OptionError
from tvm_compress.files import write_whole

__all__ = ["TrialLog", "key_of"]

_FORMAT = "tvm-compress search 1"
_FILE = "trials.jsonl"


def key_of(what: Any) -> str:
    """Give a short digest of anything that JSON takes.

    >>> key_of({"a": 1}) == key_of({"a": 1}) != key_of({"a": 2})
    True
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class TrialLog:
    """The results of jobs by key, in memory and, where a folder is given, on disk.

    Args:
        folder: made if missing; None keeps the log in memory.
        search: what the results depend on, by name: a log of another search is refused.

    Raises:
        OptionError: the folder is a file.
        DataError: the log is damaged, or that of another search.
    """

    def __init__(self, folder: str | PathLike[str] | None, search: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._lines = [json.dumps({"format": _FORMAT, **search})]
        self._results: dict[str, dict[str, Any]] = {}
        self._modules: dict[str, str] = {}
        if self._folder is None:
            return
        if self._folder.exists() and not self._folder.is_dir():
            raise OptionError(
                f"The trial log {self._folder} is a file; expected a folder, which is made if "
                "missing: choose another."
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / _FILE).exists():
            self._read(self._folder / _FILE)

    def _read(self, path: Path) -> None:
        mine = json.loads(self._lines[0])
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            head, *rest = [json.loads(line) for line in lines]
            known = head["format"] == _FORMAT
            results = {line["key"]: line["result"] for line in rest}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged or is no log of a search; expected the JSON lines that search "
                "wrote: delete it to start anew, or give another folder."
            ) from error
        other = [name for name in mine if head.get(name) != mine[name]] if known else ["format"]
        if other:
            raise DataError(
                f"The trial log {path} belongs to another search: it differs in "
                f"{' and '.join(other)}; expected the log of this one: give another folder, or "
                "delete it to start anew."
            )
        self._lines, self._results = lines, results

    def get(self, key: str) -> dict[str, Any] | None:
        """Give the result of a job that was done, or None."""
        result = self._results.get(key)
        lost = result is not None and "module" in result and not self._has_module(key)
        return None if lost else result

    def add(self, key: str, what: str, result: Mapping[str, Any]) -> None:
        """Keep a result, whose ``module`` (JSON text) goes into a file of its own."""
        kept = dict(result)
        if "module" in kept:
            self._keep_module(key, kept["module"])
            kept["module"] = _module_file(key)
        self._results[key] = kept
        self._lines.append(json.dumps({"key": key, "what": what, "result": kept}))
        if self._folder is not None:
            text = "\n".join(self._lines) + "\n"
            write_whole(self._folder / _FILE, lambda stream: stream.write(text.encode()))

    def module(self, key: str) -> str:
        """Give the module of a trial, as JSON."""
        if self._folder is None:
            return self._modules[key]
        return (self._folder / _module_file(key)).read_text(encoding="utf-8")

    def _keep_module(self, key: str, text: str) -> None:
        if self._folder is None:
            self._modules[key] = text
        else:
            path = self._folder / _module_file(key)
            write_whole(path, lambda stream: stream.write(text.encode()))

    def _has_module(self, key: str) -> bool:
        return self._folder is None or (self._folder / _module_file(key)).is_file()


def _module_file(key: str) -> str:
    return f"trial-{key}.json"
