"""A training run of seconds; `python -m tests.models.resumable FOLDER` is killed in its second epoch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.batches import LOG_Q
from models.training import Progress, TrainingState, quiet, set_seed, train
from models.two_tower import TwoTowerConfig, build_two_tower, losses

from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip

BATCHES, ROWS, EPOCHS = 4, 16, 3


class RandomBatches:
    """Batches drawn from the number of the epoch."""

    def __init__(self, epoch: int) -> None:
        random = np.random.default_rng(epoch)
        self.user = random.integers(0, 10, (BATCHES, ROWS, 1))
        self.content = random.integers(0, 20, (BATCHES, ROWS, 1))

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, place: int) -> tuple[dict[str, np.ndarray], None]:
        x = {"user_id": self.user[place], "content_id": self.content[place]}
        return x | {LOG_Q: np.zeros((ROWS, 1), np.float32)}, None


def model() -> Any:
    """An untrained two-tower of one id a side; always the same."""
    set_seed(1)
    query, content = (
        Schema(
            [
                ColumnSchema(
                    name,
                    dtype=np.int64,
                    tags=[Tags.CATEGORICAL, *tags],
                    properties={"domain": {"min": 0, "max": 20, "name": name}},
                )
            ]
        )
        for name, tags in (
            ("user_id", [Tags.USER, Tags.USER_ID]),
            ("content_id", [Tags.ITEM, Tags.ITEM_ID]),
        )
    )
    return build_two_tower(query, content, TwoTowerConfig(dim=4, embedding_dim=4, hidden=(8,)), seed=1)


def run(
    folder: Path,
    progress: Progress = quiet,
    *,
    validate: Callable[[Any], dict[str, float]] = lambda model: {},
    epochs: int = EPOCHS,
    patience: int = 1,
) -> tuple[list[np.ndarray], TrainingState]:
    """Train the model in `folder`; its weights afterwards."""
    made = model()
    state = train(
        "toy",
        made,
        losses,
        RandomBatches,
        validate,
        monitor="recall",
        epochs=epochs,
        patience=patience,
        folder=folder,
        progress=progress,
    )
    return made.get_weights(), state


def die_in_the_second_epoch(name: str, done: int, total: int, metrics: dict[str, float]) -> None:
    if done == BATCHES + 2:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run(Path(sys.argv[1]), die_in_the_second_epoch)
