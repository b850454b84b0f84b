"""Folders in which files are dropped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "strain").mkdir()
    return tmp_path
