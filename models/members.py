"""Models that were trained under several seeds, asked as one.

Where a log is small, what a model learned depends on the seed as much as on anything else. The mean of a few
is better than each (Hansen and Salamon, "Neural network ensembles", PAMI 1990), and costs as many times what
one costs, in training and in serving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from .training import TrainingState

APART = 7919
"""Between the seeds of two members: builds of seeds that lie close share none."""
SURE = 1e-7
"""Least chance and doubt that a member is believed to have; float32 tells no less from certainty."""


class TwoTowers(tf.Module):
    """Two-towers whose vectors stand side by side: an inner product is the mean of the members'."""

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        self.members = list(members)

    def query_encoder(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Query vectors, float32[B, members · D]."""
        return self._beside([member.query_encoder(inputs, training=training) for member in self.members])

    def candidate_encoder(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Content vectors, float32[N, members · D]."""
        return self._beside([member.candidate_encoder(inputs, training=training) for member in self.members])

    def _beside(self, vectors: list[tf.Tensor]) -> tf.Tensor:
        return tf.concat(vectors, axis=1) / len(vectors) ** 0.5


class Rankers(tf.Module):
    """Rankers whose logits are averaged."""

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        self.members = list(members)

    def __call__(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Probabilities, float32[B, T]."""
        return mean_chance([member(inputs, training=training) for member in self.members])


def mean_chance(chances: Sequence[tf.Tensor]) -> tf.Tensor:
    """The probability whose logit is the mean of those of probabilities of one shape."""
    if len(chances) == 1:
        return chances[0]
    logits = [tf.math.log(tf.maximum(p, SURE)) - tf.math.log(tf.maximum(1 - p, SURE)) for p in chances]
    return tf.sigmoid(tf.add_n(logits) / len(chances))


def members_of(model: Any) -> list[Any]:
    """The models that were trained: those of `TwoTowers` or `Rankers`, else the model itself."""
    return model.members if isinstance(model, TwoTowers | Rankers) else [model]


def member_folders(folder: Path, count: int) -> list[Path]:
    """Where members are trained: the first in `folder`, the others beside it."""
    return [folder, *(folder.with_name(f"{folder.name}-{member}") for member in range(1, count))]


def train_members(
    train: Callable[[Path, int], tuple[Any, TrainingState]],
    join: Callable[[Sequence[Any]], Any],
    count: int,
    folder: Path,
    seed: int,
) -> tuple[Any, list[TrainingState]]:
    """Train `count` models and join them; one is left as it is.

    Args:
        train: trains a model in a folder under a seed.
        join: `TwoTowers` or `Rankers`.
        folder: see `member_folders`.

    Returns:
        The model, and how the training of each member went.
    """
    models, states = [], []
    for member, place in enumerate(member_folders(folder, count)):
        model, state = train(place, seed + APART * member)
        models.append(model)
        states.append(state)
    return (models[0] if count == 1 else join(models)), states
