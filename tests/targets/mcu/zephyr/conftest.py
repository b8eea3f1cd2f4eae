from __future__ import annotations

from pathlib import Path

import pytest

from tests.targets.mcu.zephyr.fakes import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """No Zephyr and no tools, but what the test puts there."""
    return World(tmp_path, monkeypatch)
