#!/usr/bin/env bash
# Bring .venv to a level: `demo` (run the package and the boards) or `test` (all of it, with torch).
#
#     scripts/ensure_env.sh demo|test
#
# PYTHON names the interpreter; without it the first of python3.11 to python3.13 and python3 that is
# in range is taken. A stamp is written last, so an interrupted installation is repeated. It holds a
# checksum of what was asked for, so a second call costs nothing until that changes.
set -euo pipefail
cd "$(dirname "$0")/.."

level="${1:-}"
case "$level" in
    demo) extras=demo ;;
    test) extras=test,docs,train ;;
    *) echo "ensure_env.sh: the level is '$level'; expected demo or test." >&2; exit 1 ;;
esac

venv=.venv
in_range='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
version='import sys; print("%d.%d" % sys.version_info[:2])'

# A name on PATH is not yet an interpreter: version managers put a launcher there for each version
# that they know of. So each one is started.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        if ! "$PYTHON" -c "$in_range" >/dev/null 2>&1; then
            echo "PYTHON=$PYTHON does not run or is not Python 3.11, 3.12 or 3.13, the versions that" \
                "Apache TVM's wheel is used with here. Name one of those." >&2
            return 1
        fi
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c "$in_range" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11, 3.12 or 3.13 was found on PATH. Install one, or name one:" \
        "make demo PYTHON=/path/to/python3.11" >&2
    return 1
}

# An environment holds absolute paths, so one that was moved is as broken as one without pip.
usable() {
    [ -x "$venv/bin/python" ] || return 1
    [ "$(cat "$venv/made-in" 2>/dev/null)" = "$PWD" ] || return 1
    "$venv/bin/python" -c "$in_range" >/dev/null 2>&1 || return 1
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    if [ -n "${PYTHON:-}" ]; then
        [ "$("$venv/bin/python" -c "$version")" = "$("$PYTHON" -c "$version" 2>/dev/null)" ] || return 1
    fi
}

wanted="$(cat pyproject.toml constraints.txt scripts/ensure_env.sh | cksum)"
# The environment for the tests does all that the one for the demo does.
stamped() { [ "$(cat "$venv/level-$1" 2>/dev/null)" = "$wanted" ]; }

if usable; then
    if stamped test || { [ "$level" = demo ] && stamped demo; }; then
        exit 0
    fi
else
    python="$(find_python)"
    echo "Making $venv with $python ($("$python" -c "$version"))."
    if ! "$python" -m venv --clear "$venv"; then
        echo "$python cannot make a virtual environment; on Debian and Ubuntu its module comes with" \
            "the package python$("$python" -c "$version")-venv. Install that, or name another" \
            "Python with PYTHON=." >&2
        exit 1
    fi
    echo "$PWD" >"$venv/made-in"
fi

echo "Installing into $venv (level $level); the first time this takes some minutes."
rm -f "$venv/level-demo" "$venv/level-test"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
install=("$venv/bin/python" -m pip install --progress-bar off -c constraints.txt)
# The build backend goes in first and is used from here: pip would otherwise fetch one for itself,
# past the pins.
"${install[@]}" --quiet hatchling editables
"${install[@]}" --quiet --no-build-isolation --editable ".[$extras]"

echo "$wanted" >"$venv/level.partial"
mv "$venv/level.partial" "$venv/level-$level"
