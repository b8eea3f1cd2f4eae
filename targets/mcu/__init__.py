"""Cortex-M boards: toolchains, firmware harness, emulators, size and profile."""
