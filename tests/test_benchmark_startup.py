from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import startup


@pytest.mark.parametrize(
    ("helps", "imports", "code"),
    [
        ([9.0, 0.4, 0.5, 0.9], [9.0, 0.2, 0.3, 0.9], 0),
        ([9.0, 0.6, 0.5, 0.9], [9.0, 0.2, 0.3, 0.9], 1),
        ([9.0, 0.4, 0.5, 0.9], [9.0, 0.4, 0.3, 0.9], 1),
    ],
)
def test_medians_are_held_and_the_first_run_is_left_out(
    helps: list[float],
    imports: list[float],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    help_times: Iterator[float] = iter(helps)
    import_times: Iterator[float] = iter(imports)
    monkeypatch.setattr(startup, "help_seconds", lambda: next(help_times))
    monkeypatch.setattr(startup, "import_seconds", lambda: (2.0, 0.1, next(import_times)))
    record = tmp_path / "startup.json"
    assert startup.main(["--check", "--runs", "3", "--json", str(record)]) == code
    document = json.loads(record.read_text())
    assert document["results"]["help_seconds"] == helps[1:]
    assert [figure["value"] for figure in document["figures"]] == [
        sorted(helps[1:])[1],
        sorted(imports[1:])[1],
    ]
    assert "| import tvm " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_each_kind_gives_seconds() -> None:
    tvm, registered, everything = startup.import_seconds()
    assert 0 < registered < everything
    assert tvm > 0
    assert startup.help_seconds() > 0
