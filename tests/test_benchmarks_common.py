from __future__ import annotations

import argparse
import doctest
import json
import math
import platform
from pathlib import Path

import pytest

from benchmarks import common, sharing_speed
from benchmarks.common import Figure, Report, finish, markdown_table, replace_block, write_docs
from tvm_compress.clustering import METHODS


def options(tmp_path: Path, *arguments: str) -> argparse.Namespace:
    parser = common.option_parser("probe", "A probe.")
    return parser.parse_args(["--json", str(tmp_path / "results" / "probe.json"), *arguments])


def report(*figures: Figure) -> Report:
    return Report(
        "probe", "| table |", figures, {"bytes": 7}, seed=3, packages=["numpy", "no-such"]
    )


MET, MISSED = Figure("size", 9, 10, "B"), Figure("time", 1.5, 1, "s")


def test_the_examples_hold() -> None:
    outcome = doctest.testmod(common)
    assert outcome.attempted >= 3
    assert outcome.failed == 0


def test_a_figure_is_met_up_to_its_limit() -> None:
    assert Figure("size", 10, 10, "B").met
    assert not Figure("size", 10.01, 10, "B").met
    assert Figure("accuracy", 10, 10, "%", at_least=True).met
    assert not Figure("accuracy", 9.99, 10, "%", at_least=True).met
    assert not Figure("size", math.nan, 10, "B").met
    assert not Figure("accuracy", math.nan, 10, "%", at_least=True).met


def test_a_figure_says_its_verdict() -> None:
    assert str(MISSED) == "MISSED: time is 1.5 s; held to at most 1 s."
    assert str(Figure("accuracy", 99.25, 98, "%", at_least=True)) == (
        "met: accuracy is 99.25 %; held to at least 98 %."
    )


def test_the_record_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish(report(MET, MISSED), options(tmp_path), tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == ["| table |", str(MET), str(MISSED)]
    written = tmp_path / "results" / "probe.json"
    record = json.loads(written.read_text())
    assert record["benchmark"] == "probe"
    assert record["seed"] == 3
    assert record["results"] == {"bytes": 7}
    assert record["figures"][1] == {
        "name": "time",
        "value": 1.5,
        "limit": 1,
        "unit": "s",
        "at_least": False,
        "met": False,
    }
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["no-such"] == "not installed"
    assert record["versions"]["numpy"][0].isdigit()
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize(
    ("figures", "flags", "code"),
    [
        ([MET, MISSED], ["--check"], 1),
        ([MET], ["--check"], 0),
        ([], ["--check"], 0),
        ([MISSED], [], 0),
    ],
)
def test_the_exit_code(figures: list[Figure], flags: list[str], code: int, tmp_path: Path) -> None:
    assert finish(report(*figures), options(tmp_path, *flags), tmp_path) == code


def test_the_default_record_lies_beside_the_benchmarks() -> None:
    parsed = common.option_parser("probe", "A probe.").parse_args([])
    assert parsed.json == common.ROOT / "benchmarks" / "results" / "probe.json"
    assert not parsed.check
    assert not parsed.write_docs
    assert Path(common.__file__).parent == common.ROOT / "benchmarks"


def test_the_machine_is_described_and_not_named() -> None:
    found = common.machine()
    assert set(found) == {"system", "architecture", "processor", "cores", "memory_bytes"}
    assert isinstance(found["cores"], int)
    if platform.system() == "Linux":
        assert isinstance(found["memory_bytes"], int)
        assert found["memory_bytes"] > 1e8
    # The record may be published.
    assert platform.node() not in found.values()


def test_the_processor_is_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus 5000\nmodel name\t: other\n")
    assert common._processor(cpuinfo) == "Abacus 5000"
    cpuinfo.write_text("processor\t: 0\n")
    assert common._processor(cpuinfo) == platform.processor()
    assert common._processor(tmp_path / "none") == platform.processor()


def test_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"has 1 cells; expected 2 as in its header\. Give each"):
        markdown_table(["a", "b"], [["x"]])


def test_docs_are_written_in_every_file_with_the_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = "# T\n\n<!-- benchmark:probe -->\n{}<!-- /benchmark:probe -->\n\nend\n"
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    marked = [tmp_path / "README.md", tmp_path / "docs" / "deep" / "results.md"]
    for path in marked:
        path.write_text(block.format("old\n"))
    other = tmp_path / "docs" / "other.md"
    other.write_text("<!-- benchmark:probe2 -->\n<!-- /benchmark:probe2 -->\n")
    assert finish(report(), options(tmp_path, "--write-docs"), tmp_path) == 0
    for path in marked:
        assert path.read_text() == block.format("\n| table |\n\n")
    assert "probe2 -->\n<!--" in other.read_text()
    assert capsys.readouterr().out.splitlines()[1:] == [
        "wrote README.md",
        f"wrote {Path('docs') / 'deep' / 'results.md'}",
    ]
    # A second writing changes nothing: the blank lines do not pile up.
    assert write_docs("probe", "| table |", tmp_path) == marked
    assert marked[0].read_text() == block.format("\n| table |\n\n")


def test_without_the_option_the_docs_stay(tmp_path: Path) -> None:
    text = "<!-- benchmark:probe --><!-- /benchmark:probe -->"
    (tmp_path / "README.md").write_text(text)
    finish(report(), options(tmp_path), tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_docs_without_the_block(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="No file has a block for the benchmark probe; expected"):
        write_docs("probe", "t", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- benchmark:x -->",
        "<!-- /benchmark:x -->",
        "<!-- /benchmark:x --><!-- benchmark:x -->",
        "<!-- benchmark:x --><!-- /benchmark:x -->" * 2,
    ],
)
def test_wrong_markers(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one of each, in this order\. Mend the markers"):
        replace_block(text, "x", "t")
    # One file with wrong markers leaves all files as they were.
    (tmp_path / "docs").mkdir()
    good = "<!-- benchmark:x --><!-- /benchmark:x -->"
    (tmp_path / "README.md").write_text(good)
    (tmp_path / "docs" / "bad.md").write_text(text)
    with pytest.raises(ValueError, match="Mend the markers"):
        write_docs("x", "t", tmp_path)
    assert (tmp_path / "README.md").read_text() == good


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = "<!-- benchmark:probe --><!-- /benchmark:probe -->"
    path.write_text(text)
    with pytest.raises(UnicodeEncodeError):
        write_docs("probe", "new \udc80", tmp_path)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_sharing_speed_measures_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharing_speed, "_measure_apart", sharing_speed.measure)
    path = tmp_path / "record.json"
    assert sharing_speed.main(["--size", "3000", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    cases = {(result["method"], result["sparsity"]) for result in record["results"]}
    assert cases == {(method, sparsity) for method in METHODS for sparsity in (0.0, 0.9)}
    assert [figure["limit"] for figure in record["figures"]] == [15, 2] * len(cases)
    assert "0.003 million weights, 16 centroids" in capsys.readouterr().out


def test_sharing_speed_measures_in_a_process_of_its_own() -> None:
    result = sharing_speed._measure_apart(2000, 0.9, "density")
    assert result["method"] == "density"
    assert result["size"] == 2000
    # An interpreter with numpy takes more than 15 MB and the weights here next to nothing.
    assert 15e6 < result["peak_rss_bytes"] < 2e9


def test_the_weights_of_sharing_speed_are_as_sparse_as_asked() -> None:
    dense, pruned = sharing_speed.weights(300_000, 0.0), sharing_speed.weights(300_000, 0.9)
    assert dense.dtype == "float32"
    assert (dense != 0).all()
    assert abs(float((pruned == 0).mean()) - 0.9) < 0.01
