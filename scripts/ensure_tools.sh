#!/usr/bin/env bash
# Look for the tools that only some tests need and that pip does not bring; install them from the
# distribution where that is possible without asking (root on Debian). What is missing afterwards is
# named, and only in CI (CI=true) it is an error: elsewhere the tests that need it are skipped.
set -euo pipefail

missing() {
    command -v qemu-system-arm >/dev/null || echo qemu-system-arm
    if ! command -v arm-none-eabi-gcc >/dev/null; then
        echo arm-none-eabi-gcc
    # gcc answers with the bare name where it has no such file.
    elif [ "$(arm-none-eabi-gcc -print-file-name=libc.a)" = libc.a ]; then
        echo newlib
    fi
}

absent="$(missing)"
[ -n "$absent" ] || exit 0

packages="qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing from the distribution: $packages"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of words
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; } \
        </dev/null; then
        echo "apt-get failed." >&2
    fi
    hash -r
    absent="$(missing)"
    [ -n "$absent" ] || exit 0
fi

echo "Missing:" $absent >&2
echo "On Debian and Ubuntu: sudo apt-get install $packages" >&2
echo "On macOS: brew install qemu && brew install --cask gcc-arm-embedded" >&2
if [ "${CI:-}" = true ]; then
    echo "CI is set, and there a missing tool is a failure." >&2
    exit 1
fi
echo "The tests that need them will be skipped." >&2
