"""Fuzzes both readers of .tcz files side by side, for so many seconds; exit code 1 with a finding.

    python tests/fuzz/fuzz.py 60
    python tests/fuzz/fuzz.py 60 4711

The second number seeds the mutations; without it each run takes another, and says which.

The reader in Python is fuzzed by ``fuzz_tcz.py``. The C decoder is compiled for this machine with
the sanitizers for addresses and undefined behaviour: with libFuzzer where there is a clang that
brings it, else with ``driver.c``. Logs, inputs that reach new code and inputs that fail are in
``build/fuzz/``; the next run starts from there. With ``CI=true`` a decoder without sanitizers is an
error, for it would find little.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.codec.twin import CODEC, COMPILERS, STRICT, missing, sanitizers_of

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "build" / "fuzz"
CORPUS = HERE / "corpus"
_RECOVER = "-fno-sanitize-recover=all"
# The best first; a host without the runtime library of a sanitizer takes the next.
_SANITIZERS = (
    ["-fsanitize=address,undefined", _RECOVER],
    ["-fsanitize=undefined", _RECOVER],
    [],
)
# Beyond the time that was asked for, a fuzzer starts, reads its corpus and ends its last input.
_GRACE_SECONDS = 120


def build_libfuzzer(folder: Path, decoder: Path = CODEC / "decoder.c") -> Path | None:
    """Build the C fuzzer with clang's libFuzzer; None where there is none."""
    if shutil.which("clang") is None:
        return None
    program = folder / "decoder-libfuzzer"
    command = ["clang", *STRICT, "-fsanitize=fuzzer,address,undefined", _RECOVER, f"-I{CODEC}"]
    built = subprocess.run(
        [*command, str(decoder), str(HERE / "fuzz_decoder.c"), "-o", str(program)],
        capture_output=True,
    )
    return program if built.returncode == 0 else None


def build_driver(
    folder: Path, compiler: str, decoder: Path = CODEC / "decoder.c"
) -> tuple[Path, str]:
    """Build the C fuzzer with ``driver.c``, and tell the best sanitizers that the compiler has.

    The sanitizers are told by what is in the program (``address,undefined``), empty for none: zig
    takes the option for addresses and leaves it out.
    """
    command = [*COMPILERS[compiler][0], *STRICT, f"-I{CODEC}"]
    program, built = folder / f"decoder-driver-{compiler}", None
    for sanitizers in _SANITIZERS:
        units = (
            (decoder, ["-fsanitize-coverage=trace-pc"]),
            (HERE / "fuzz_decoder.c", []),
            (HERE / "driver.c", []),
        )
        steps = [
            [*command, *sanitizers, *flags, "-c", str(unit), "-o", str(folder / f"{unit.stem}.o")]
            for unit, flags in units
        ]
        objects = [str(folder / f"{unit.stem}.o") for unit, _ in units]
        steps.append([*command, *sanitizers, *objects, "-o", str(program)])
        for step in steps:
            built = subprocess.run(step, capture_output=True, text=True)
            if built.returncode:
                break
        else:
            code = program.read_bytes()
            marks = {"address": b"__asan_", "undefined": b"__ubsan_"}
            return program, ",".join(name for name, mark in marks.items() if mark in code)
    assert built is not None
    raise SystemExit(f"The fuzzer of the decoder cannot be compiled:\n{built.stderr}")


def decoder_command(seconds: int, seed: int) -> list[str]:
    """Build the fuzzer of the C decoder, say what it is, and give the command that runs it.

    Raises:
        SystemExit: it cannot be compiled; or ``CI=true``, and there are no sanitizers.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    if program := build_libfuzzer(WORK):
        say_engine("decoder", "libFuzzer of clang", "address,undefined")
        return [str(program), *_libfuzzer_options("decoder", seconds, seed)]
    compiler = _compiler()
    program, sanitizers = build_driver(WORK, compiler)
    say_engine("decoder", f"driver.c with {compiler}", sanitizers)
    files = map(str, sorted(CORPUS.glob("*.tcz")))
    return [str(program), str(seconds), "0", str(seed), str(WORK / "decoder-crash"), *files]


def loader_command(seconds: int, seed: int) -> list[str]:
    """Say what fuzzes the reader in Python, and give the command that does.

    Raises:
        SystemExit: ``CI=true``, and there are no sanitizers for its twin in C.
    """
    engine = "atheris" if importlib.util.find_spec("atheris") else "mutations by chance"
    WORK.mkdir(parents=True, exist_ok=True)
    sanitizers = "".join(sanitizers_of(_compiler(), WORK)[:1]).removeprefix("-fsanitize=")
    say_engine("loader", engine, sanitizers)
    options = _libfuzzer_options("loader", seconds, seed)
    return [sys.executable, str(HERE / "fuzz_tcz.py"), *options]


def say_engine(what: str, engine: str, sanitizers: str) -> None:
    """Say what fuzzes a reader, and which sanitizers watch the C decoder meanwhile.

    Raises:
        SystemExit: ``CI=true``, and there are none.
    """
    if not sanitizers and os.environ.get("CI") == "true":
        raise SystemExit(
            f"Fuzzing the {what}: the C decoder would run without sanitizers under CI=true; "
            "expected at least that for undefined behaviour: install a compiler with its runtime "
            "libraries (gcc with libasan and libubsan, or clang)."
        )
    print(f"fuzzing the {what} by {engine}; sanitizers of the C decoder: {sanitizers or 'none'}")


def _compiler() -> str:
    return next(name for name in ("cc", *COMPILERS) if missing(name) is None)


def _libfuzzer_options(what: str, seconds: int, seed: int) -> list[str]:
    # New inputs go to the first folder; the corpus itself stays as it is.
    found = WORK / f"{what}-corpus"
    found.mkdir(parents=True, exist_ok=True)
    return [
        *(f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={WORK}/{what}-"),
        *("-print_final_stats=1", str(found), str(CORPUS)),
    ]


def side_by_side(commands: dict[str, Sequence[str]], seconds: float) -> bool:
    """Run commands, each into its log, and say how they ended; whether all ended well."""
    WORK.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    running = {}
    for what, command in commands.items():
        with (WORK / f"{what}.log").open("wb") as log:
            running[what] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    well = True
    try:
        for what, process in running.items():
            try:
                code: int | str = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = "none, it did not end"
            log_path = WORK / f"{what}.log"
            text = log_path.read_text(errors="replace")
            runs = re.findall(r"\b(\d+) runs\b", text)
            if code == 0 and runs:
                print(f"fuzzing the {what}: {int(runs[-1]):,} inputs, no finding")
                continue
            well = False
            print(text[-4000:], file=sys.stderr)
            print(f"fuzzing the {what}: exit code {code}; the log is {log_path}", file=sys.stderr)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return well


def main(arguments: Sequence[str]) -> int:
    """Fuzz for the seconds given; a second number seeds the mutations, else the clock does."""
    seconds = int(arguments[0]) if arguments else 60
    # Ours and not libFuzzer's choice, which it makes where the seed is 0: so it can be told.
    given = int(arguments[1]) if len(arguments) > 1 else 0
    seed = given or time.time_ns() % (1 << 31) or 1
    # At once: a run that is killed is to be repeated too.
    print(f"fuzzing for {seconds} s with the seed {seed}", flush=True)
    commands = {
        "decoder": decoder_command(seconds, seed),
        "loader": loader_command(seconds, seed),
    }
    return 0 if side_by_side(commands, seconds + _GRACE_SECONDS) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
