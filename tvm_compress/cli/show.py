"""Tables for people and JSON for programs, on standard output."""

from __future__ import annotations

import json
import string
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tvm_compress.codec.container import Header
    from tvm_compress.doctor import Finding
    from tvm_compress.inspection import Histogram, Inspection, Memory, MemoryTensor
    from tvm_compress.search import SearchResult
    from tvm_compress.targets.artifact import Artifact, Profile
    from tvm_compress.targets.mcu.boards import Board, Region
    from tvm_compress.targets.mcu.installed import Tool

__all__ = [
    "as_json",
    "boards",
    "boards_as_list",
    "build",
    "build_as_dict",
    "findings",
    "front",
    "header",
    "histogram",
    "inspection",
    "line",
    "memory",
    "outputs",
    "outputs_as_dict",
    "profile",
    "profile_as_dict",
    "saving",
]

# A file or a pipe has no width, and a table that is cut cannot be read back.
_WIDTH_OF_A_FILE = 200
_LONGEST_BAR = 40
# Columns of the picture of the arena, and what marks the tensors in it.
_ARENA_COLUMNS = 48
_LETTERS = string.ascii_uppercase + string.ascii_lowercase
# Beyond so many centroids a table says less than the bins do.
_MOST_CENTROIDS = 256


def _console() -> Console:
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    return Console(width=width, highlight=False, markup=False)


def line(text: str) -> None:
    """Print one line."""
    _console().print(text, soft_wrap=True)


def as_json(document: Any) -> None:
    """Print a JSON document."""
    print(json.dumps(document, indent=2))


def _table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    total: Sequence[str] | None = None,
) -> None:
    """Print a table; the columns ``left`` are aligned to the left, the others to the right."""
    table = Table(title=title, title_justify="left", show_footer=total is not None)
    for column, name in enumerate(header):
        table.add_column(
            name,
            footer=total[column] if total else "",
            justify="left" if column in left else "right",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"


def inspection(found: Inspection) -> None:
    """Print a network: inputs, outputs, operators and the table of its parameters."""
    for what, specs in (("input", found.inputs), ("output", found.outputs)):
        for spec in specs:
            line(f"{what} {spec.name}: {spec.dtype} {_shape(spec.shape)}")
    line("operators: " + ", ".join(f"{n} {op}" for op, n in found.operators.items()))
    total = found.totals
    coded = total.get("coded_bytes", 0)

    def spent(coded_bytes: float | None, bits_per_weight: float | None) -> tuple[str, str, str]:
        if coded_bytes is None or bits_per_weight is None:
            return "-", "-", "-"
        share = f"{coded_bytes / coded:.1%}" if coded else "-"
        return f"{bits_per_weight:.2f}", f"{coded_bytes:,}", share

    _table(
        "Parameters",
        (
            *("name", "shape", "operator", "density", "bits"),
            *("bits/weight", "coded bytes", "share", "dense bytes", "packed bytes", "layout"),
        ),
        [
            (
                p.name,
                _shape(p.shape),
                p.operator or "-",
                f"{p.density:.1%}",
                str(p.bits),
                *spent(p.coded_bytes, p.bits_per_weight),
                f"{p.dense_bytes:,}",
                f"{p.packed_bytes:,}",
                p.layout,
            )
            for p in found.parameters
        ],
        left=(0, 1, 2, 10),
        total=(
            *("total", f"{total['parameters']:,}", "", f"{total['density']:.1%}", ""),
            *spent(None if found.file is None else coded, 8 * coded / max(1, total["parameters"])),
            *(f"{total['dense_bytes']:,}", f"{total['packed_bytes']:,}", "estimate"),
        ),
    )
    if found.file is None:
        line(f"no coded bytes: {found.no_file}")
        return
    sections = ", ".join(f"{s.name} {s.size_bytes:,}" for s in found.file.sections)
    line(
        f".tcz of the profile {found.file.profile}: {found.file.file_bytes:,} bytes (header "
        f"{found.file.header_bytes:,}, {sections})"
    )


def header(found: Header, path: object) -> None:
    """Print the header of a ``.tcz`` file, whatever its state."""

    def state(intact: bool) -> str:
        return "intact" if intact else "damaged"

    line(
        f"{path}: .tcz version {found.version}, profile {found.profile}, features "
        f"{found.features:#06x}, {found.file_bytes:,} bytes"
    )
    _table(
        "Sections",
        ("part", "bytes", "CRC-32", "state"),
        [
            ("header", f"{found.header_bytes:,}", "", state(found.intact)),
            *(
                (s.name, f"{s.size_bytes:,}", f"{s.crc32:08x}", state(s.intact))
                for s in found.sections
            ),
        ],
        left=(0, 2, 3),
    )


def histogram(found: Histogram) -> None:
    """Print how the values of a parameter are spread, and its centroids where it is shared."""

    def bar(count: int, most: int) -> str:
        return "#" * -(-count * _LONGEST_BAR // most) if most else ""

    most = max((b.count for b in found.bins), default=0)
    _table(
        f"{found.name}: {found.size:,} values, {found.zeros:,} of them 0",
        ("from", "to", *(("centroids",) if found.centroids else ()), "values", ""),
        [
            (
                f"{b.low:.4g}",
                f"{b.high:.4g}",
                *((str(b.centroids),) if found.centroids else ()),
                f"{b.count:,}",
                bar(b.count, most),
            )
            for b in found.bins
        ],
        left=(4 if found.centroids else 3,),
    )
    if not 0 < len(found.centroids) <= _MOST_CENTROIDS:
        return
    # The zeros would make all other bars short.
    most = max((c.count for c in found.centroids if c.value), default=0)
    several = found.centroids[-1].codebook > 0
    _table(
        f"{found.name}: centroids",
        (*(("codebook",) if several else ()), "code", "value", "values", ""),
        [
            (
                *((str(c.codebook),) if several else ()),
                str(c.code),
                f"{c.value:.6g}",
                f"{c.count:,}",
                bar(c.count, most) if c.value else "",
            )
            for c in found.centroids
        ],
        left=(4 if several else 3,),
    )


def memory(found: Memory) -> None:
    """Draw the memory plan: time runs down, the addresses of the arena run to the right."""
    letters = {tensor.name: _LETTERS[i % len(_LETTERS)] for i, tensor in enumerate(found.tensors)}
    most = max((step.live_bytes for step in found.steps), default=0)

    def bar(count: int) -> str:
        return "#" * -(-count * _LONGEST_BAR // (2 * most)) if most else ""

    line(
        f"arena {found.arena_bytes:,} bytes (most live at once {found.bound_bytes:,}), beside it "
        f"inputs {found.input_bytes:,} and outputs {found.output_bytes:,}"
    )
    _table(
        "Steps",
        ("step", "name", "kind", "live bytes", "", f"arena, 0 to {found.arena_bytes:,}"),
        [
            (
                str(i),
                step.name,
                step.kind,
                f"{step.live_bytes:,}",
                bar(step.live_bytes),
                _arena(found, i, letters),
            )
            for i, step in enumerate(found.steps)
        ],
        left=(1, 2, 4, 5),
    )
    _table(
        "Arena",
        ("", "tensor", "from", "to", "bytes", "steps", "written over"),
        [
            (
                letters[tensor.name],
                tensor.name,
                f"{tensor.offset:,}",
                f"{tensor.offset + tensor.size_bytes:,}",
                f"{tensor.size_bytes:,}",
                f"{tensor.first} to {tensor.last}",
                tensor.over or "",
            )
            for tensor in sorted(found.tensors, key=lambda t: (t.offset, t.first))
        ],
        left=(0, 1, 6),
    )


def _arena(found: Memory, step: int, letters: Mapping[str, str]) -> str:
    """Draw what lies in the arena at a step; each column shows what takes most of it."""
    live = [tensor for tensor in found.tensors if tensor.first <= step <= tensor.last]
    # What is written over another, from its beginning or from before it, is shown in its place.
    covered = {t.over: t.offset + t.size_bytes for t in live if t.first == step}
    columns = []
    for column in range(_ARENA_COLUMNS if found.arena_bytes else 0):
        begin, end = (found.arena_bytes * c / _ARENA_COLUMNS for c in (column, column + 1))

        def part(tensor: MemoryTensor, begin: float = begin, end: float = end) -> float:
            first = max(tensor.offset, covered.get(tensor.name, 0))
            return min(end, tensor.offset + tensor.size_bytes) - max(begin, first)

        widest = max(live, key=part, default=None)
        columns.append(letters[widest.name] if widest and part(widest) > 0 else ".")
    return "".join(columns)


def saving(before: Mapping[str, float], found: Inspection) -> None:
    """Print totals before and after compression."""
    after = found.totals
    _table(
        "Compression",
        ("", "before", "after"),
        [
            ("density", f"{before['density']:.1%}", f"{after['density']:.1%}"),
            ("dense bytes", f"{before['dense_bytes']:,}", f"{after['dense_bytes']:,}"),
            (
                "packed bytes (estimate)",
                f"{before['packed_bytes']:,}",
                f"{after['packed_bytes']:,}",
            ),
            *(
                []
                if found.file is None
                else [
                    (
                        f".tcz bytes ({found.file.profile})",
                        f"{before['file_bytes']:,}" if "file_bytes" in before else "-",
                        f"{found.file.file_bytes:,}",
                    )
                ]
            ),
        ],
    )


def front(result: SearchResult) -> None:
    """Print the Pareto front of a search, the best network marked."""
    names = list(result.best.costs)
    line(f"{len(result.trials)} trials; accuracy of the uncompressed network {result.accuracy:.2%}")
    _table(
        "Pareto front",
        ("", "accuracy", *(name.replace("_", " ") for name in names)),
        [
            (
                "best" if trial is result.best else "",
                f"{trial.accuracy:.2%}",
                *(f"{trial.cost(name):,.0f}" for name in names),
            )
            for trial in result.front
        ],
    )


def build_as_dict(artifact: Artifact, *, sized: bool) -> dict[str, Any]:
    """Give files and, where they were linked for a board, sizes as JSON takes them."""
    document: dict[str, Any] = {"files": {n: str(path) for n, path in artifact.files.items()}}
    if sized:
        size = artifact.size
        document["flash_bytes"], document["flash"] = size.flash_bytes, dict(size.flash)
        document["ram_bytes"], document["ram"] = size.ram_bytes, dict(size.ram)
    return document


def build(artifact: Artifact, *, sized: bool) -> None:
    """Print the files and, where they were linked for a board, the table of sizes."""
    document = build_as_dict(artifact, sized=sized)
    for path in document["files"].values():
        line(f"wrote {path}")
    if not sized:
        return
    rows = []
    for memory in ("flash", "ram"):
        rows += [(memory, part, f"{count:,}") for part, count in document[memory].items()]
        rows.append((memory, "total", f"{document[f'{memory}_bytes']:,}"))
    _table("Size", ("memory", "part", "bytes"), rows, left=(0, 1))


def outputs_as_dict(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Give outputs as JSON takes them."""
    return {
        name: {"dtype": str(a.dtype), "shape": list(a.shape), "values": a.tolist()}
        for name, a in arrays.items()
    }


def outputs(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Print name, type and range of each output, and its first values."""

    def number(value: np.generic) -> str:
        return f"{value:.6g}"

    _table(
        "Outputs",
        ("output", "dtype", "shape", "least", "largest", "first values"),
        [
            (
                name,
                str(a.dtype),
                _shape(a.shape),
                number(a.min()) if a.size else "-",
                number(a.max()) if a.size else "-",
                " ".join(number(v) for v in a.ravel()[:8]) + (" ..." if a.size > 8 else ""),
            )
            for name, a in arrays.items()
        ],
        left=(0, 1, 2, 5),
    )


def profile_as_dict(found: Profile) -> dict[str, Any]:
    """Give a profile as JSON takes it."""
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "instructions": int(layer.instructions),
            "model_cycles": layer.model_cycles,
            "mix": dict(layer.mix),
        }
        for layer in found.layers
    ]
    return {
        "instructions": int(found.instructions),
        "model_cycles": found.model_cycles,
        "layers": layers,
    }


def profile(found: Profile) -> None:
    """Print the tables of instructions and model cycles by layer, and of instructions by class."""
    document = profile_as_dict(found)
    layers = document["layers"]

    def both(part: dict[str, Any]) -> Iterable[str]:
        for what in ("instructions", "model_cycles"):
            count, total = part[what], document[what]
            yield "-" if count is None else f"{count:,}"
            yield f"{count / total:.1%}" if total and part is not document else "-"

    _table(
        "Instructions and model cycles (not time)",
        ("layer", "kind", "instructions", "share", "model cycles", "share"),
        [(layer["name"], layer["kind"], *both(layer)) for layer in layers],
        left=(0, 1),
        total=("total", "", *both(document)),
    )
    mix: Counter[str] = Counter()
    for layer in layers:
        mix.update(layer["mix"])
    _table(
        "Instruction mix",
        ("class", "instructions", "share"),
        [
            (kind, f"{count:,}", f"{count / document['instructions']:.1%}")
            for kind, count in mix.most_common()
        ],
        left=(0,),
    )


def boards_as_list(found: Sequence[Board]) -> list[dict[str, Any]]:
    """Give boards as JSON takes them: their files, and what is installed for each."""
    from dataclasses import asdict

    from tvm_compress.targets.mcu.installed import compilers_of, emulators_of

    return [
        {
            **board.model_dump(mode="json", exclude={"limits"}),
            "features": list(board.features),
            "compilers": [asdict(tool) for tool in compilers_of(board)],
            "emulators": [asdict(tool) for tool in emulators_of(board)],
        }
        for board in found
    ]


def boards(found: Sequence[Board]) -> None:
    """Print the boards and what is installed for each, and how to get what is missing."""
    from tvm_compress.targets.mcu.installed import compilers_of, emulators_of

    def kib(regions: Sequence[Region]) -> str:
        return " + ".join(f"{region.length / 1024:,g}" for region in regions)

    def names(tools: Sequence[Tool]) -> str:
        return ", ".join(t.name if t.installed else f"{t.name} (missing)" for t in tools) or "none"

    _table(
        "Boards",
        ("name", "core", "features", "flash KiB", "RAM KiB", "MHz", "compilers", "emulators"),
        [
            (
                board.name,
                board.cpu,
                " ".join(board.features) or "-",
                kib(board.flash_regions),
                kib(board.ram_regions),
                f"{board.clock_hz / 1e6:g}" if board.clock_hz else "-",
                names(compilers_of(board)),
                names(emulators_of(board)),
            )
            for board in found
        ],
        left=(0, 1, 2, 6, 7),
    )
    missing = {
        (tool.name, tool.remedy): board.name
        for board in reversed(found)
        for tool in (*compilers_of(board), *emulators_of(board))
        if not tool.installed
    }
    for (name, remedy), board_name in missing.items():
        line(f"{name} is missing for {board_name} and maybe others. {remedy}.")


def findings(found: Sequence[Finding]) -> None:
    """Print what is installed and how to get the rest."""
    _table(
        "Installation",
        ("name", "used for", "installed", "wanted", "state", "how to get it"),
        [
            (
                f.name,
                f.purpose,
                f.version or "-",
                f.wanted or "any",
                f.state if f.required or f.state != "missing" else "missing (optional)",
                f.remedy,
            )
            for f in found
        ],
        left=range(6),
    )
