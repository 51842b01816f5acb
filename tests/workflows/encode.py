"""Encodes a data set as a build does; `python -m tests.workflows.encode DATA OUT` in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from market.dataset import Dataset
from workflows.examples import build_examples
from workflows.features import FeatureConfig, Features, fit_features

RESERVED = 3
"""Ids of padding, null and unseen, which no key has."""
CONFIG = FeatureConfig(history_length=10, user_min_count=2)


def encode(data: Path, folder: Path) -> Features:
    """The features of a data set; scratch and results stand under `folder`."""
    examples = build_examples(Dataset.open(data), folder / "examples", history_length=10, seen_length=40)
    return fit_features(examples, folder / "features", CONFIG)


def assert_same_encoding(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same columns, but that keys which are equally frequent may have changed places."""
    assert set(found) == set(expected)
    for name, array in found.items():
        other = expected[name]
        assert array.dtype == other.dtype, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            pairs = np.unique(np.stack([array.ravel(), other.ravel()]), axis=1)
            assert all(len(np.unique(side)) == pairs.shape[1] for side in pairs), name
            np.testing.assert_array_equal(pairs[0, pairs[1] < RESERVED], pairs[1, pairs[1] < RESERVED], name)


def save(made: Features, folder: Path) -> None:
    """Each side's columns, for another process to compare."""
    for side in ("query", "content"):
        np.savez(folder / f"{side}.npz", **getattr(made, side).arrays)


if __name__ == "__main__":
    save(encode(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[2]))
