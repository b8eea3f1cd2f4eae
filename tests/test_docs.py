"""Every code block of the README, CONTRIBUTING.md and docs/ is run or checked.

Blocks of Python and of the shell run in order, one document in one folder of its own with a copy of
``examples/``, in one namespace. Lines of the shell that call ``make`` or ``pip`` would set up this
very environment again; they are checked against the Makefile and pyproject.toml instead.
"""

from __future__ import annotations

import doctest
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([REPO / "README.md", REPO / "CONTRIBUTING.md", *REPO.glob("docs/**/*.md")])

PYTHON = {"python", "py", "pycon"}
SHELL = {"console", "bash", "sh", "shell"}
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,}) *(?P<language>[\w+-]*)[^`]*$")
NO_RUN = re.compile(r"^ *<!-- *no-run:(?P<reason>.*)--> *$")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text and the line (from 1) on which the text starts."""

    language: str
    text: str
    line: int


def code_blocks(markdown: str) -> Iterator[Block]:
    """Yield the blocks to run, in order; one under a ``no-run`` comment is left out."""
    opened: re.Match[str] | None = None
    body: list[str] = []
    excused = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if opened is None:
            if fence := FENCE.match(line):
                opened, body, start = fence, [], number + 1
            elif comment := NO_RUN.match(line):
                assert comment["reason"].strip(), f"line {number}: no-run needs a reason"
                excused = True
            elif line.strip():
                excused = False
        elif line.strip().startswith(opened["ticks"]) and not line.strip(" `~"):
            language = opened["language"].lower()
            if language in PYTHON | SHELL and not excused:
                yield Block(language, textwrap.dedent("\n".join(body)) + "\n", start)
            opened, excused = None, False
        else:
            body.append(line)
    assert opened is None, f"line {start - 1}: the block is never closed"


def run_python(block: Block, names: dict[str, Any], document: str) -> None:
    """Run a block in ``names``; one with ``>>>`` is a doctest."""
    if ">>> " in block.text:
        test = doctest.DocTestParser().get_doctest(
            block.text, names, document, document, block.line - 1
        )
        # The test works on a copy; what the block defined is for the blocks after it too.
        test.globs = names
        report: list[str] = []
        runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
        result = runner.run(test, out=report.append, clear_globs=False)
        assert not result.failed, "".join(report)
        return
    # The empty lines in front make a traceback name the line of the document.
    exec(compile("\n" * (block.line - 1) + block.text, document, "exec"), names)


def commands(block: Block) -> list[tuple[str, str | None]]:
    """Return the commands of a block of the shell, each with the output it promises, if any."""
    if not re.search(r"^\$ ", block.text, re.MULTILINE):
        return [(block.text, None)]
    found: list[tuple[str, str | None]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], None))
            continue
        assert found, f"line {block.line}: output stands in front of the first command"
        command, output = found[-1]
        if line.startswith("> ") or command.endswith("\\"):
            found[-1] = (f"{command}\n{line.removeprefix('> ')}", output)
        else:
            found[-1] = (command, (output or "") + line + "\n")
    return found


def make_targets() -> set[str]:
    """Return the targets that `make` lists."""
    makefile = (REPO / "Makefile").read_text()
    return set(re.findall(r"^([a-z]+):[^#\n]*## ", makefile, re.MULTILINE))


def check_setup(line: str) -> bool:
    """Check a line that calls make or pip against the project; return whether it is one."""
    if not re.match(r"\s*(make|pip|\S*python\S* -m pip)\b", line):
        return False
    words = shlex.split(line, comments=True)
    alone = not {"&", "&&", ";", "|", "||"} & set(words)
    assert alone, f"`{line}`: it is not run, so nothing else may stand on its line"
    if words[:1] == ["make"]:
        wanted = {word for word in words[1:] if "=" not in word}
        unknown = wanted - make_targets()
        assert not unknown, f"`{line}`: the Makefile lists no target {sorted(unknown)}"
        return True
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:tvm-compress|\.)\[([\w,-]+)\]", line):
        unknown = set(extras.split(",")) - set(project["optional-dependencies"])
        assert not unknown, f"`{line}`: pyproject.toml has no extra {sorted(unknown)}"
    for after, path in itertools.pairwise(words):
        assert after not in {"-c", "-r"} or (REPO / path).is_file(), f"`{line}`: no {path}"
    return True


def run_shell(block: Block, folder: Path) -> None:
    """Run the commands of a block in ``folder`` and compare what output they promise."""
    for command, promised in commands(block):
        whole = command.replace("\\\n", " ")
        lines = [line for line in whole.splitlines() if not check_setup(line)]
        if not "".join(lines).strip():
            continue
        environment = dict(os.environ)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        # What a reader's terminal is like must not show in the output.
        environment |= {"NO_COLOR": "1", "COLUMNS": "100"}
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        where = f"line {block.line}: `{command.strip()}`"
        assert result.returncode == 0, f"{where} failed:\n{result.stdout}{result.stderr}"
        if promised and promised.strip():
            same = doctest.OutputChecker().check_output(promised, result.stdout, FLAGS)
            assert same, f"{where} printed:\n{result.stdout}\nexpected:\n{promised}"


def run_document(markdown: str, name: str, folder: Path) -> int:
    """Run the blocks of a document in ``folder``; return their number."""
    names: dict[str, Any] = {"__name__": "__document__"}
    blocks = list(code_blocks(markdown))
    for block in blocks:
        if block.language in PYTHON:
            run_python(block, names, name)
        else:
            run_shell(block, folder)
    return len(blocks)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(
        REPO / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_document(document: Path, folder: Path) -> None:
    run_document(document.read_text(), str(document), folder)


def test_front_page_tells_of_the_two_commands() -> None:
    blocks = list(code_blocks((REPO / "README.md").read_text()))
    told = [command for block in blocks for command, _ in commands(block)]
    assert "make demo" in told and "make test" in told


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(REPO)) for p in DOCUMENTS)])
def test_benchmark_blocks_are_closed(page: str) -> None:
    marks = re.findall(r"^<!-- (/?)benchmark:(\w+) -->$", (REPO / page).read_text(), re.MULTILINE)
    assert [name for slash, name in marks if not slash] == [name for slash, name in marks if slash]
    assert [slash for slash, _ in marks] == ["", "/"] * (len(marks) // 2)


# What follows tests the machinery above: a block that is wrong must not pass.


def test_blocks_run_in_order_and_share_names(folder: Path) -> None:
    text = """
```python
value = 20
```
Text.
    ```console
    $ echo 22 > number
    ```
```pycon
>>> value += int(open("number").read())
>>> value
42
```
```python
assert value == 42
open("answer", "w").write(str(value))
```
"""
    assert run_document(text, "text", folder) == 4
    assert (folder / "answer").read_text() == "42"


def test_blocks_that_are_left_out() -> None:
    text = """
<!-- no-run: needs a board on the desk -->

```python
left out
```
```toml
left = "out"
```
~~~~python
```
inner
```
~~~~
<!-- no-run: belongs to no block -->
Text.
```bash
run
```
"""
    assert list(code_blocks(text)) == [
        Block("python", "```\ninner\n```\n", 11),
        Block("bash", "run\n", 18),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\n1 / 0\n```", "division by zero"),
        ("```python\n1 +\n```", "invalid syntax"),
        ("```python\n>>> 1 + 1\n3\n```", "Expected: 3 Got: 2"),
        ("```bash\nfalse\n```", "line 2: `false` failed"),
        ("```bash\nfalse | true\n```", "`false | true` failed"),
        ("```console\n$ echo 1\n2\n```", "`echo 1` printed: 1 expected: 2"),
        ("```console\n1\n$ echo 1\n```", "output stands in front of the first command"),
        ("```console\n$ make no-such-thing\n```", "lists no target ['no-such-thing']"),
        ("```console\n$ pip install '.[boards,none]'\n```", "has no extra ['none']"),
        ("```bash\npython -m pip install 'tvm-compress[none]'\n```", "has no extra ['none']"),
        ("```bash\npip install -c none.txt .\n```", "no none.txt"),
        ("```bash\nmake test && false\n```", "nothing else may stand on its line"),
        ("<!-- no-run: -->\n```python\n1\n```", "line 1: no-run needs a reason"),
        ("text\n```python\n1\n", "line 2: the block is never closed"),
    ],
)
def test_what_is_wrong_fails(text: str, complaint: str, folder: Path) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError, SyntaxError)) as caught:
        run_document(text, "text", folder)
    assert complaint in " ".join(str(caught.value).split())


def test_output_may_be_shortened_and_commands_wrapped(folder: Path) -> None:
    text = "```console\n$ printf '%s ' \\\n>   a b c\na ... c\n$ echo 1 && \\\n  echo 2\n1\n2\n```"
    assert run_document(text, "text", folder) == 1


def test_shell_runs_this_python(folder: Path) -> None:
    run_document("```bash\npython -c 'import sys; print(sys.prefix)' > prefix\n```", "", folder)
    assert (folder / "prefix").read_text().strip() == sys.prefix
