"""Files of arrays that a build keeps for a later one to go on from: they appear whole, and damage is told."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from market.files import written

ANEW = "build without an earlier one, which trains from the beginning"
"""What to do where there is nothing to go on from."""


def write_kept(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name into a file *.npz, which has its name once it is whole."""
    with written(path) as place, place.open("wb") as opened:
        np.savez(opened, **arrays)


def read_kept(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_kept` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing, so there is nothing to go on from; {ANEW}") from None
    except (ValueError, KeyError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); build what made it once more, or {ANEW}") from None
