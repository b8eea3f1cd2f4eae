"""What all benchmarks share: options, the record, the table in the docs and the check.

A benchmark is one file that asks one question. It makes its ``Report`` and ends with
``raise SystemExit(finish(report, options))``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tvm_compress.files import write_whole

__all__ = [
    "ROOT",
    "Figure",
    "Report",
    "finish",
    "machine",
    "markdown_table",
    "option_parser",
    "replace_block",
    "versions",
    "write_docs",
]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figure:
    """A measured number and the limit that it is held to.

    Attributes:
        name: What was measured.
        value: The measured number.
        limit: The largest allowed value, or the smallest if ``at_least``.
        unit: Unit of value and limit.
        at_least: Whether the limit is a lower one.
    """

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the value is within the limit (a NaN never is)."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        """Say name, value, limit and verdict in one line.

        >>> str(Figure("peak RSS", 2.5, 2, "GB"))
        'MISSED: peak RSS is 2.5 GB; held to at most 2 GB.'
        """
        verdict, side = "met" if self.met else "MISSED", "at least" if self.at_least else "at most"
        return (
            f"{verdict}: {self.name} is {self.value:.4g} {self.unit}; "
            f"held to {side} {self.limit:g} {self.unit}."
        )


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        name: The benchmark's file name without suffix; names its record and its block in the docs.
        table: Markdown for people, printed and written to the docs.
        figures: The numbers that ``--check`` holds.
        results: All numbers, as JSON takes them.
        seed: Seed of all random data.
        packages: Installed packages whose versions matter.
    """

    name: str
    table: str
    figures: Sequence[Figure]
    results: Any
    seed: int
    packages: Sequence[str] = field(default=("tvm-compress", "numpy"))


def option_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of the options that every benchmark takes; it may add its own."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "benchmarks" / "results" / f"{name}.json",
        metavar="FILE",
        help="where to write the record (default: benchmarks/results/%(prog)s.json)",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 where a held figure is missed"
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="write the table into the marked blocks of README.md and docs/",
    )
    return parser


def finish(report: Report, options: argparse.Namespace, root: Path = ROOT) -> int:
    """Print the table and the figures, write the record and the docs, give the exit code."""
    print(report.table)
    for figure in report.figures:
        print(figure)
    record = {
        "benchmark": report.name,
        "seed": report.seed,
        "versions": versions(report.packages),
        "machine": machine(),
        "figures": [{**asdict(figure), "met": figure.met} for figure in report.figures],
        "results": report.results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    _write(options.json, json.dumps(record, indent=2) + "\n")
    if options.write_docs:
        for path in write_docs(report.name, report.table, root):
            print(f"wrote {path.relative_to(root)}")
    return int(options.check and not all(figure.met for figure in report.figures))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Give the versions of Python and of the packages; one that is missing says so."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, str | int | None]:
    """Describe the machine without naming it: system, architecture, processor, cores, memory."""
    memory: int | None = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }


def _processor(cpuinfo: Path) -> str:
    # Linux leaves platform.processor() empty or repeats the architecture there.
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor()


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda stream: stream.write(text.encode()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table whose first column is left-aligned and the others right-aligned.

    >>> print(markdown_table(["case", "s"], [["dense", 1.5], ["sparse", "n/a"]]))
    | case   |   s |
    |:-------|----:|
    | dense  | 1.5 |
    | sparse | n/a |
    """
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(
                f"A row of the table has {len(row)} cells; expected {len(header)} as in its "
                f"header. Give each row one cell a column: {row}."
            )
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = [":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), f"|{'|'.join(rule)}|", *map(line, cells[1:])])


def replace_block(text: str, name: str, table: str) -> str:
    r"""Replace what stands between the two markers of a benchmark.

    Raises:
        ValueError: If the text does not have exactly one pair of markers in the right order.

    >>> replace_block("<!-- benchmark:x -->old<!-- /benchmark:x -->", "x", "new")
    '<!-- benchmark:x -->\n\nnew\n\n<!-- /benchmark:x -->'
    """
    opening, closing = f"<!-- benchmark:{name} -->", f"<!-- /benchmark:{name} -->"
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not (found and closed) or text.count(opening) != 1 or text.count(closing) != 1:
        raise ValueError(
            f"The text has {text.count(opening)} times {opening} and {text.count(closing)} times "
            f"{closing}; expected one of each, in this order. Mend the markers."
        )
    return f"{before}{opening}\n\n{table}\n\n{closing}{after}"


def write_docs(name: str, table: str, root: Path = ROOT) -> list[Path]:
    """Write the table into every block of the benchmark in ``README.md`` and under ``docs/``.

    Returns:
        The files that have the block, written only where they changed.

    Raises:
        ValueError: If no file has the block, or one has its markers wrong.
    """
    written = {}
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        if f"benchmark:{name} -->" in text:
            written[path] = (text, replace_block(text, name, table))
    if not written:
        raise ValueError(
            f"No file has a block for the benchmark {name}; expected one in README.md or docs/. "
            f"Add the lines <!-- benchmark:{name} --> and <!-- /benchmark:{name} --> to one."
        )
    for path, (old, new) in written.items():
        if new != old:
            _write(path, new)
    return list(written)


if __name__ == "__main__":
    sys.exit("This file holds what the benchmarks share; run one of its neighbours.")
