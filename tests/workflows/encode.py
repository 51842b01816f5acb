"""Encodes a data set as a build does; `python -m tests.workflows.encode DATA OUT` in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from market.dataset import Dataset
from workflows.examples import build_examples
from workflows.features import FeatureConfig, Features, fit_features

CONFIG = FeatureConfig(history_length=10, user_min_count=2)


def encode(data: Path, folder: Path) -> Features:
    """The features of a data set; scratch and results stand under `folder`."""
    examples = build_examples(Dataset.open(data), folder / "examples", history_length=10, seen_length=40)
    return fit_features(examples, folder / "features", CONFIG)


if __name__ == "__main__":
    made = encode(Path(sys.argv[1]), Path(sys.argv[2]))
    for side in ("query", "content"):
        np.savez(Path(sys.argv[2]) / f"{side}.npz", **getattr(made, side).arrays)
