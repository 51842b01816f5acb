"""Fixtures shared by every test: the real data folder, where there is one, and one small world."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from market.dataset import Dataset
    from models.batches import TrainingSet
    from workflows.examples import Examples
    from workflows.features import Features

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of public data sets: $PASAR_DATA, else ../shared/data beside the checkout."""
    root = Path(os.environ.get("PASAR_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no public data sets at {root}; set PASAR_DATA to their folder")
    return root


@pytest.fixture(scope="session")
def small_world_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six days of a simulated world with two markets: 8,000 impressions in slates of ten, split by time."""
    from market.world import World, WorldConfig

    config = WorldConfig(users=400, contents=300, sellers=30, impressions=8000, days=6, markets=("ID", "GB"))
    return World(config).write(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="session")
def small_examples(small_world_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Queries and pairs of the small world, with histories of ten events."""
    from workflows.examples import build_examples

    return build_examples(small_world_dataset, tmp_path_factory.mktemp("examples"), history_length=10)


@pytest.fixture(scope="session")
def small_features(small_examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Features:
    """The small world's encoded queries and contents."""
    from workflows.features import FeatureConfig, fit_features

    folder = tmp_path_factory.mktemp("features") / "features"
    return fit_features(small_examples, folder, FeatureConfig(history_length=10, user_min_count=2))


@pytest.fixture(scope="session")
def small_training_set(small_examples: Examples, small_features: Features) -> TrainingSet:
    """What the small world's models train on; popularity looks three days back."""
    from models.batches import make_training_set

    return make_training_set(small_examples, small_features, window_s=3 * 86_400)
