"""What a build keeps for a later one: files of arrays, which appear whole and of which damage is told, and
what tells whether the same code made them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from market.files import written

ANEW = "build without an earlier one, which trains from the beginning"
"""What to do where there is nothing to go on from."""

ROOT = Path(__file__).resolve().parents[1]
"""Of the packages' source."""
MADE_BY = ("market", "supply", "feedback", "workflows", "models", "ensemble")
"""Packages whose code makes a release: all that a build may import."""


def sources(*packages: str) -> list[Path]:
    """The files of code of packages of ours, in the same order everywhere."""
    return [source for package in packages for source in sorted((ROOT / package).rglob("*.py"))]


def code_of(files: Iterable[Path]) -> str:
    """A sum of files of code: what another one made is made anew."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(b"%d " % file.stat().st_size + file.read_bytes())
    return digest.hexdigest()


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
