"""Fuzzes both readers of .tcz files side by side, for so many seconds; exit code 1 with a finding.

    python tests/fuzz/fuzz.py 60

The reader in Python is fuzzed by ``fuzz_tcz.py``. The C decoder is compiled for this machine with
the sanitizers for addresses and undefined behaviour: with libFuzzer where there is a clang that
brings it, else with ``driver.c``. Logs, inputs that reach new code and inputs that fail are in
``build/fuzz/``; the next run starts from there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.codec.twin import CODEC, COMPILERS, STRICT, missing

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


def build_driver(folder: Path, compiler: str, decoder: Path = CODEC / "decoder.c") -> Path:
    """Build the C fuzzer with ``driver.c``, with the best sanitizers that the compiler has."""
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
            return program
    assert built is not None
    raise SystemExit(f"The fuzzer of the decoder cannot be compiled:\n{built.stderr}")


def decoder_command(seconds: int, seed: int) -> list[str]:
    """Build the fuzzer of the C decoder, and give the command that runs it."""
    WORK.mkdir(parents=True, exist_ok=True)
    if program := build_libfuzzer(WORK):
        return [str(program), *_libfuzzer_options("decoder", seconds, seed)]
    compiler = next(name for name in ("cc", *COMPILERS) if missing(name) is None)
    program = build_driver(WORK, compiler)
    files = map(str, sorted(CORPUS.glob("*.tcz")))
    return [str(program), str(seconds), "0", str(seed), str(WORK / "decoder-crash"), *files]


def loader_command(seconds: int, seed: int) -> list[str]:
    """Give the command that fuzzes the reader in Python."""
    options = _libfuzzer_options("loader", seconds, seed)
    return [sys.executable, str(HERE / "fuzz_tcz.py"), *options]


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
    """Fuzz for the seconds given; a second number seeds the mutations."""
    seconds = int(arguments[0]) if arguments else 60
    # libFuzzer takes 0 for a seed of its own choice.
    seed = int(arguments[1]) if len(arguments) > 1 else 0
    commands = {
        "decoder": decoder_command(seconds, seed or time.time_ns() % (1 << 31)),
        "loader": loader_command(seconds, seed),
    }
    return 0 if side_by_side(commands, seconds + _GRACE_SECONDS) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
