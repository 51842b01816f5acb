"""Content vectors (columns `v_…`) as features: centred, of one length, turned to their main directions.

What an encoder says of audio or images has a few hundred numbers, many of which say the same of everything.
The main directions of the cosines between contents are what a model can tell them apart by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .kept import ANEW, read_kept, write_kept

PREFIX = "v_"
PARTS = ("mean", "directions")


@dataclass(frozen=True)
class VectorSpace:
    """How one column of vectors becomes numbers.

    Attributes:
        name: the column.
        mean: float32[D], of the contents it was fitted on.
        directions: float32[D, K], main directions, of length 1: products of the numbers are about cosines.
            Zeros where no content had a vector: such a space says nothing.
    """

    name: str
    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, name: str, vectors: np.ndarray, most: int) -> VectorSpace:
        """The space of a column.

        Args:
            vectors: float32[R, D], rows with NaN are unknown and count nothing.
            most: directions kept at most.
        """
        known = vectors[~np.isnan(vectors).any(axis=1)].astype(np.float64)
        mean = known.mean(axis=0) if len(known) else np.zeros(vectors.shape[1])
        turned = _unit(known - mean)
        values, directions = np.linalg.eigh(turned.T @ turned)
        kept = np.argsort(-values, kind="stable")[:most]
        # Of either sign, the one that makes the largest part positive: eigenvectors have none of their own.
        directions = directions[:, kept]
        largest = np.abs(directions).argmax(axis=0)
        directions *= np.sign(directions[largest, np.arange(len(kept))])
        if not len(known):
            directions[:] = 0
        return cls(name, mean.astype(np.float32), directions.astype(np.float32))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """The numbers of vectors float32[R, D]: float32[R, K]; of an unknown one zeros, as of the mean."""
        known = ~np.isnan(vectors).any(axis=1, keepdims=True)
        turned = _unit(np.where(known, vectors, self.mean) - self.mean)
        return (turned @ self.directions).astype(np.float32)


def write_spaces(path: Path, spaces: Sequence[VectorSpace]) -> None:
    """Keep spaces in a file *.npz."""
    write_kept(path, {f"{s.name} {part}": getattr(s, part) for s in spaces for part in PARTS})


def read_spaces(path: Path) -> dict[str, VectorSpace]:
    """The spaces that `write_spaces` kept, by column.

    Raises:
        ValueError: the file is missing or damaged.
    """
    kept = read_kept(path)
    names = {key.rsplit(" ", 1)[0] for key in kept}
    return {name: VectorSpace(name, *(kept[f"{name} {part}"] for part in PARTS)) for name in names}


def space_of(
    name: str, vectors: np.ndarray, seen: np.ndarray, most: int, earlier: VectorSpace | None
) -> VectorSpace:
    """The space of a column: the one that an earlier build had, where that says anything, else a new one.

    Args:
        vectors: float32[N, D], see `raw_vectors`.
        seen: bool[N], contents that a new one is fitted on.
        most: directions kept at most.

    Raises:
        ValueError: the earlier one is of other vectors, or has more or fewer directions.
    """
    if earlier is None or not earlier.directions.any():
        return VectorSpace.fit(name, vectors[seen], most)
    (length, count), own = earlier.directions.shape, vectors.shape[1]
    if length != own:
        raise ValueError(
            f"vectors of contents.{name} have {own} numbers, in the earlier build they had {length}, so its "
            f"ranker knows nothing of these; {ANEW}"
        )
    if count != min(most, own):
        raise ValueError(
            f"features.vector_dims = {most} makes {min(most, own)} numbers of contents.{name}, the earlier "
            f"build's ranker knows {count}; set it to {count}, or {ANEW}"
        )
    return earlier


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def vector_columns(contents: pd.DataFrame) -> list[str]:
    """Columns of content vectors."""
    return [name for name in contents.columns if name.startswith(PREFIX)]


def raw_vectors(contents: pd.DataFrame, name: str) -> np.ndarray:
    """A column of vectors as float32[N, D], NaN where a content has none."""
    known = contents[name].notna().to_numpy()
    vectors = np.stack(contents.loc[known, name].to_list()).astype(np.float32)
    whole = np.full((len(contents), vectors.shape[1]), np.nan, np.float32)
    whole[known] = vectors
    return whole
