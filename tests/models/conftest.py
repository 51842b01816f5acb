"""Two small models trained once on the small world, shared by every test of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models.batches import TrainingSet
from models.ranker import RankerConfig, train_ranker
from models.training import TrainingState
from models.two_tower import TwoTowerConfig, train_two_tower

SEED = 5


class Trained(NamedTuple):
    """A trained model, its configuration, its tasks (the ranker's), how training went and where."""

    model: Any
    config: Any
    tasks: tuple[str, ...]
    state: TrainingState
    folder: Path


@pytest.fixture(scope="session")
def small_two_tower(small_training_set: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = TwoTowerConfig(
        dim=8, embedding_dim=8, hidden=(16,), related=5, batch_size=128, epochs=2, learning_rate=1e-2
    )
    folder = tmp_path_factory.mktemp("two-tower")
    model, [state] = train_two_tower(small_training_set, config, folder, SEED)
    return Trained(model, config, (), state, folder)


@pytest.fixture(scope="session")
def small_ranker(small_training_set: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = RankerConfig(embedding_dim=8, bottom=(16,), top=(16,), batch_size=512, epochs=1, min_outcomes=60)
    folder = tmp_path_factory.mktemp("ranker")
    model, tasks, [state] = train_ranker(small_training_set, config, folder, SEED)
    return Trained(model, config, tasks, state, folder)
