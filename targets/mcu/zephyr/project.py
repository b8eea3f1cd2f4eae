"""Writes a model as a complete Zephyr application; the templates are in ``application/``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tvm_compress.errors import OptionError
from tvm_compress.targets.mcu.firmware import ModelSources
from tvm_compress.targets.mcu.harness import harness_header
from tvm_compress.targets.mcu.project import LIBM, LIBM_FUNCTIONS, read_templates

__all__ = ["LIBC", "TEMPLATES", "application_files"]

_TEMPLATES = Path(__file__).parent / "application"
# The option `template`: the file that becomes src/main.c.
TEMPLATES = {
    "serial": Path(__file__).parent / "application" / "src" / "main.c",
    "mlperf-tiny": Path(__file__).parent / "mlperf_tiny.c",
}
# The option `libc`: the line of prj.conf that chooses it.
LIBC = {
    "minimal": "CONFIG_MINIMAL_LIBC=y",
    "newlib": "CONFIG_NEWLIB_LIBC=y",
    "picolibc": "CONFIG_PICOLIBC=y",
    "default": "# The C library is Zephyr's choice.",
}
_SOURCES = (".c", ".s", ".S")
_HEADER = (".h",)


def application_files(
    model: ModelSources,
    *,
    template: str,
    stack_bytes: int,
    libc: str,
    verbose: bool,
    emulated: bool,
    definitions: Sequence[str],
    extra_files: Sequence[Path],
) -> dict[str, str]:
    """Give the texts of an application's files by their path in its folder.

    Args:
        model: what it runs.
        template: a key of :data:`TEMPLATES`: what the application answers on the serial line.
        stack_bytes: bytes of the main thread's stack, in which the model runs.
        libc: a key of :data:`LIBC`.
        verbose: let Zephyr show its banner, and the application what it does.
        emulated: whether a request ends the emulator, also on boards that Zephyr does not call
            emulated.
        definitions: of the preprocessor, ``NAME`` or ``NAME=VALUE``, for all that is compiled.
        extra_files: ``.c``, ``.s``, ``.S`` and ``.h`` go beside the application's sources,
            ``.conf`` to the end of ``prj.conf``, and ``.overlay`` changes the device tree.

    Raises:
        OptionError: an option is outside its range, or an extra file cannot be taken.
    """
    _check(template, stack_bytes, libc, definitions)
    settings = [
        LIBC[libc],
        f"CONFIG_BOOT_BANNER={'y' if verbose else 'n'}",
        f"CONFIG_TVM_COMPRESS_VERBOSE={'y' if verbose else 'n'}",
    ]
    if template == "mlperf-tiny":
        # The clock of its timestamps; at least 10 s are measured.
        settings.append("CONFIG_SYS_CLOCK_TICKS_PER_SEC=10000")
    if emulated:
        settings.append("CONFIG_TVM_COMPRESS_SEMIHOST_EXIT=y")
    header = harness_header(model.name, model.inputs, model.outputs, model.arena_bytes)
    extra: dict[str, str] = {}
    for path in extra_files:
        _add_extra(path, extra, settings)
    sources = {name: text for name, text in model.files.items() if not name.endswith(_HEADER)}
    values = {
        "NAME": model.name,
        "UPPER": model.name.upper(),
        "STACK_BYTES": str(stack_bytes),
        "LIBM": " ".join(f"{f}={model.name}_{f}" for f in LIBM_FUNCTIONS),
        "SETTINGS": "\n".join(settings),
        "DEFINITIONS": " ".join(f'"{definition}"' for definition in definitions),
    }
    listed = {
        name: {"SOURCES": " ".join(paths)}
        for name, paths in {
            "CMakeLists.txt": ["src/main.c", *(n for n in extra if n.endswith(_SOURCES))],
            "model/CMakeLists.txt": [f"src/{n}" for n in (*sources, "libm.c")],
        }.items()
    }
    files = read_templates(_TEMPLATES, values, listed)
    files["src/main.c"] = TEMPLATES[template].read_text(encoding="utf-8")
    files["src/harness_model.h"] = "\n".join(
        [
            f'#define HARNESS_MODEL_NAME "{model.name}"',
            f"#define HARNESS_INPUT_BYTES {sum(spec.size_bytes for spec in model.inputs)}",
            f"#define HARNESS_OUTPUT_0_{model.outputs[0].dtype}",
            header,
        ]
    )
    for name, text in model.files.items():
        public = name == f"{model.name}.h"
        files[f"model/{'include' if public else 'src'}/{name}"] = text
    files["model/src/libm.c"] = LIBM
    for name, text in extra.items():
        if name in files:
            raise OptionError(
                f"The extra file {Path(name).name} has the name of a file of the application; "
                "expected another one. Rename it."
            )
        files[name] = text
    return files


def _check(template: str, stack_bytes: int, libc: str, definitions: Sequence[str]) -> None:
    if template not in TEMPLATES:
        raise OptionError(
            f"The template {template!r} is not known; expected one of {', '.join(TEMPLATES)}. "
            "Leave it out for serial."
        )
    if stack_bytes < 512 or stack_bytes % 8:
        raise OptionError(
            f"stack_bytes is {stack_bytes}; expected a multiple of 8 from 512 on. Take the default "
            "4096, or what a run tells that the model uses, and some more."
        )
    if libc not in LIBC:
        raise OptionError(
            f"The C library {libc!r} is not known; expected one of {', '.join(LIBC)}. Leave it out "
            "for minimal."
        )
    for definition in definitions:
        if not re.fullmatch(r'[A-Za-z_]\w*(=[^"\\$;@\n]*)?', definition, re.ASCII):
            raise OptionError(
                f"{definition!r} is no definition of the preprocessor; expected NAME or NAME=VALUE "
                'without any of " \\ $ ; @. Put others into a header among extra_files.'
            )


def _add_extra(path: Path, extra: dict[str, str], settings: list[str]) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"The extra file {path} cannot be read ({error}). Give the path of a text file."
        ) from error
    if path.suffix == ".conf":
        settings += [f"# {path.name}", text.rstrip("\n")]
        return
    if path.suffix not in (*_SOURCES, *_HEADER, ".overlay"):
        raise OptionError(
            f"The extra file {path} ends in {path.suffix or 'nothing'}; expected "
            f"{', '.join((*_SOURCES, *_HEADER))}, .conf or .overlay. Rename it, or copy it into "
            "the application yourself."
        )
    # Zephyr takes app.overlay of its own accord.
    name = "app.overlay" if path.suffix == ".overlay" else f"src/{path.name}"
    if name in extra:
        raise OptionError(
            f"Two extra files would be {name} of the application; expected one. Join them or "
            "rename one."
        )
    extra[name] = text
