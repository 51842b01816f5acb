"""Fixtures shared by every test: the real data folder, where there is one."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of public data sets: $PASAR_DATA, else ../shared/data beside the checkout."""
    root = Path(os.environ.get("PASAR_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no public data sets at {root}; set PASAR_DATA to their folder")
    return root
