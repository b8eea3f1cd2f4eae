"""The fuzzers run, find what is wrong, and say so."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.codec.twin import CODEC, COMPILERS, Twin, missing, sanitizers_of
from tests.fuzz import fuzz, fuzz_tcz
from tests.fuzz.fuzz_tcz import CORPUS, by_chance, check, mended, mutation

FILES = sorted(CORPUS.glob("*.tcz"))


@pytest.fixture(scope="module", params=COMPILERS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := missing(request.param):
        pytest.skip(reason)
    return fuzz.build_driver(tmp_path_factory.mktemp("driver"), request.param)[0]


def drive(program: Path, runs: int, seed: int, finding: Path) -> subprocess.CompletedProcess[str]:
    command = [program, "0", str(runs), str(seed), finding, *FILES]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_decoder_has_no_finding_and_a_seed_makes_the_same_inputs(
    driver: Path, tmp_path: Path
) -> None:
    first, again, other = (drive(driver, 30_000, seed, tmp_path / "finding") for seed in (1, 1, 2))
    for result in (first, again, other):
        assert (result.returncode, result.stderr) == (0, "")
    # The driver is guided: it sees that inputs reach new code.
    reached = re.fullmatch(r"30000 runs, (\d+) inputs reached new code\n", first.stdout)
    assert reached
    assert int(reached.group(1)) > 20
    assert first.stdout == again.stdout
    assert not (tmp_path / "finding").exists()


# What is taken out of the decoder, and what must then be reported. All lies behind the checksums,
# so it is found only because inputs are mended.
SABOTAGE = {
    "the end of the codes": ("if (at >= codes_end) return UINT32_MAX;", "", "heap-buffer-overflow"),
    "the end of the section": (
        "if (left < bit / 8 + 4) return UINT32_MAX;",
        "left += 1 << 20;",
        "heap-buffer-overflow",
    ),
    "the number of values": (
        "kept != places",
        "kept > tensor->count",
        "promise: a sparse tensor has a value for each place",
    ),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_fault_of_the_decoder_is_found_and_its_input_kept(name: str, tmp_path: Path) -> None:
    if reason := missing("cc"):
        pytest.skip(reason)
    old, new, told = SABOTAGE[name]
    text = (CODEC / "decoder.c").read_text()
    assert text.count(old) == 1
    (tmp_path / "decoder.c").write_text(text.replace(old, new))
    program, sanitizers = fuzz.build_driver(tmp_path, "cc", tmp_path / "decoder.c")
    if "overflow" in told and "address" not in sanitizers:
        pytest.skip("cc has no address sanitizer on this machine.")
    finding = tmp_path / "finding"
    result = drive(program, 2_000_000, 1, finding)
    assert result.returncode not in (0, 2)
    assert told in result.stderr
    assert f"The input is in {finding}." in result.stderr
    # The sound decoder takes the same input.
    (tmp_path / "sound").mkdir()
    sound, _ = fuzz.build_driver(tmp_path / "sound", "cc")
    command = [sound, "0", "1", "1", tmp_path / "other", finding]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_the_output_of_both_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "WORK", tmp_path / "work")
    good = [sys.executable, "-c", "print('Done 1234 runs in 5 second(s)')"]
    assert fuzz.side_by_side({"one": good, "other": good}, 60)
    assert capsys.readouterr().out.splitlines() == [
        "fuzzing the one: 1,234 inputs, no finding",
        "fuzzing the other: 1,234 inputs, no finding",
    ]
    for bad, told in (
        ("print('7 runs'); raise SystemExit('a finding')", "exit code 1; the log is "),
        ("pass", "exit code 0; the log is "),  # it did nothing
        ("import time; time.sleep(600)", "exit code none, it did not end; the log is "),
    ):
        commands = {"one": good, "other": [sys.executable, "-c", bad]}
        assert not fuzz.side_by_side(commands, 2)
        captured = capsys.readouterr()
        assert captured.out.splitlines() == ["fuzzing the one: 1,234 inputs, no finding"]
        assert f"fuzzing the other: {told}{tmp_path / 'work' / 'other.log'}" in captured.err
        assert ("a finding" in captured.err) == ("finding" in bad)


@pytest.mark.slow
def test_both_fuzzers_run_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "WORK", tmp_path / "work")
    before = sorted(CORPUS.iterdir())
    assert fuzz.main(["2", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fuzzing for 2 s with the seed 1"
    assert [line.split(" by ")[0] for line in lines[1:3]] == [
        "fuzzing the decoder",
        "fuzzing the loader",
    ]
    assert [line.split(":")[0] for line in lines[3:]] == [
        "fuzzing the decoder",
        "fuzzing the loader",
    ]
    # What reaches new code is kept, and not in the corpus that is committed.
    assert sorted(CORPUS.iterdir()) == before


def test_the_seed_is_told_and_goes_to_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("decoder_command", "loader_command"):
        monkeypatch.setattr(fuzz, name, lambda seconds, seed: (seconds, seed))
    ran: list[Any] = []
    monkeypatch.setattr(
        fuzz, "side_by_side", lambda commands, seconds: ran.append(commands) or True
    )
    for arguments in (["7", "11"], ["7"], ["7"], ["7", "0"]):
        assert fuzz.main(arguments) == 0
    told = re.findall(r"fuzzing for 7 s with the seed (\d+)\n", capsys.readouterr().out)
    seeds = [int(seed) for seed in told]
    assert ran == [{"decoder": (7, seed), "loader": (7, seed)} for seed in seeds]
    # Without one, and with libFuzzer's word for that, each run takes another.
    assert seeds[0] == 11 and len(set(seeds)) == 4 and min(seeds) > 0


def test_engines_and_sanitizers_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "WORK", tmp_path / "work")
    monkeypatch.setattr(shutil, "which", lambda name: None)  # neither clang nor cc
    monkeypatch.setenv("CI", "true")
    if reason := missing("zig"):
        pytest.skip(reason)
    fuzz.decoder_command(1, 1)
    fuzz.loader_command(1, 1)
    guided = importlib.util.find_spec("atheris") is not None
    assert capsys.readouterr().out.splitlines() == [
        "fuzzing the decoder by driver.c with zig; sanitizers of the C decoder: undefined",
        f"fuzzing the loader by {'atheris' if guided else 'mutations by chance'}; sanitizers of "
        "the C decoder: undefined",
    ]


@pytest.mark.parametrize("what", ["decoder", "loader"])
def test_under_ci_there_must_be_sanitizers(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "WORK", tmp_path)
    monkeypatch.setattr(fuzz, "build_libfuzzer", lambda folder: None)
    monkeypatch.setattr(fuzz, "build_driver", lambda folder, compiler: (folder / "program", ""))
    monkeypatch.setattr(fuzz, "sanitizers_of", lambda compiler, folder: [])
    command = {"decoder": fuzz.decoder_command, "loader": fuzz.loader_command}[what]
    monkeypatch.delenv("CI", raising=False)
    assert command(1, 1)
    assert capsys.readouterr().out.endswith("; sanitizers of the C decoder: none\n")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit) as caught:
        command(1, 1)
    assert caught.value.code == (
        f"Fuzzing the {what}: the C decoder would run without sanitizers under CI=true; expected "
        "at least that for undefined behaviour: install a compiler with its runtime libraries "
        "(gcc with libasan and libubsan, or clang)."
    )


def test_a_host_without_runtime_libraries_takes_the_next_sanitizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lacking, expected in (("address", "undefined"), ("sanitize", "")):
        compiler = tmp_path / f"cc-without-{lacking}"
        compiler.write_text(f'#!/bin/sh\ncase "$*" in *{lacking}*) exit 1;; esac\n')
        compiler.chmod(0o755)
        entry = ([str(compiler)], COMPILERS["cc"][1])
        monkeypatch.setitem(COMPILERS, "cc", entry)
        options = sanitizers_of("cc", tmp_path)
        assert options[:1] == ([f"-fsanitize={expected}"] if expected else [])


def test_without_clang_there_is_no_libfuzzer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fuzz.build_libfuzzer(tmp_path) is None


def test_libfuzzer_runs_where_clang_brings_it(tmp_path: Path) -> None:
    program = fuzz.build_libfuzzer(tmp_path)
    if program is None:
        pytest.skip("There is no clang with libFuzzer; the driver takes its place.")
    new = tmp_path / "new"  # the first folder takes the inputs that reach new code
    new.mkdir()
    result = subprocess.run([program, "-runs=20000", "-seed=1", new, CORPUS], capture_output=True)
    assert result.returncode == 0, result.stderr
    assert list(new.iterdir())


def test_a_decoder_that_cannot_be_compiled_is_told(tmp_path: Path) -> None:
    compiler = next(name for name in COMPILERS if missing(name) is None)
    (tmp_path / "decoder.c").write_text("int broken(void) { return\n")
    with pytest.raises(SystemExit, match=r"cannot be compiled:\n(.|\n)*broken"):
        fuzz.build_driver(tmp_path, compiler, tmp_path / "decoder.c")


# ---- the reader in Python, where there is no atheris ---------------------------------------------


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    compiler = next(name for name in ("cc", *COMPILERS) if missing(name) is None)
    return Twin(compiler, tmp_path_factory.mktemp("twin"))


def test_mutations_by_chance_have_no_finding(twin: Twin, tmp_path: Path) -> None:
    done = by_chance(lambda data: check(data, twin), 60, 1, 150, f"{tmp_path}/")
    assert done == 150
    assert list(tmp_path.iterdir()) == []
    assert by_chance(lambda data: check(data, twin), 0, 1, 150, "") == 0


def test_an_input_that_fails_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[bytes] = []

    def one_input(data: bytes) -> None:
        seen.append(data)
        if len(seen) == len(FILES) + 3:
            raise KeyError("a finding")

    with pytest.raises(KeyError):
        by_chance(one_input, 60, 1, 1000, f"{tmp_path}/loader-")
    assert seen[: len(FILES)] == [path.read_bytes() for path in FILES]
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("loader-crash-")
    assert kept.read_bytes() == seen[-1]
    assert str(kept) in capsys.readouterr().err


def test_mutations_are_of_every_kind_and_repeatable() -> None:
    corpus = [path.read_bytes() for path in FILES]
    made = [mutation(corpus, np.random.default_rng(seed)) for seed in range(300)]
    assert made == [mutation(corpus, np.random.default_rng(seed)) for seed in range(300)]
    assert len(set(made) - set(corpus)) > 250
    sizes = {len(data) for data in corpus}
    assert any(len(data) > max(sizes) for data in made)
    assert any(len(data) < min(sizes) for data in made)
    # Mending makes files of them that are read as far as their sections.
    from tvm_compress.codec.container import read_sections

    sound = 0
    for data in filter(lambda data: len(data) > 40 and data[5] < 2, made):
        read_sections(mended(data))
        sound += 1
    assert sound > 200


def test_the_command_line_without_atheris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz_tcz, "atheris", None)
    fuzz_tcz.main(
        ["-max_total_time=1", "-seed=3", f"-artifact_prefix={tmp_path}/", "-print_final_stats=1"]
    )
    assert re.fullmatch(r"Done [1-9]\d* runs\n", capsys.readouterr().err)
