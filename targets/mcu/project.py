"""What targets that write files share: their folder, templates, the libm that goes with them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_compress.files import write_whole

__all__ = ["LIBM", "LIBM_FUNCTIONS", "project_folder", "read_templates", "write_files"]

# The text of libm.c, and its functions: name -> prototype. In a project each has the model's name
# in front, so that it is linked whatever the C library has, and two models stand beside each other.
LIBM = (Path(__file__).parent / "runtime" / "libm.c").read_text(encoding="utf-8")
LIBM_FUNCTIONS = {
    prototype.removeprefix("float ").partition("(")[0]: prototype
    for prototype in re.findall(r"^float \w+\(.*\)", LIBM, re.MULTILINE)
}


def read_templates(
    folder: Path, values: Mapping[str, str], special: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, str]:
    """Give the texts of a folder's files by their path in it, each ``@FIELD@`` filled in.

    Args:
        folder: of the templates.
        values: by field.
        special: further ones for a file of that path alone.
    """
    texts = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        fields = {**values, **(special or {}).get(name, {})}
        parts = re.split(r"@([A-Z_]+)@", path.read_text(encoding="utf-8"))
        # Every other part is the name of a field.
        texts[name] = "".join(fields[p] if i % 2 else p for i, p in enumerate(parts))
    return texts


def project_folder(out_dir: Path | None) -> tuple[Path, Any]:
    """Give ``out_dir``, or a temporary folder and what it lives as long as."""
    if out_dir is not None:
        return out_dir, None
    scratch = tempfile.TemporaryDirectory(prefix="tvm-compress-")
    return Path(scratch.name), scratch


def write_files(texts: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Write files by their path in a folder, each whole or not at all; gives their paths."""
    files = {name: folder / name for name in texts}
    for name, text in texts.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        write_whole(files[name], lambda stream, text=text: stream.write(text.encode()))  # type: ignore[misc]
    return files
