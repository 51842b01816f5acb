"""Training on a CUDA device: models live there, and what they learn is what they learn on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models.ranker
import models.two_tower
from models.batches import RankingBatches, RetrievalBatches, TrainingSet
from models.ranker import RankerConfig, build_ranker, task_labels
from models.training import TrainingLoop, set_seed
from models.two_tower import TwoTowerConfig, build_two_tower
from tests.models.conftest import SEED, Trained
from workflows.examples import TRAIN

pytestmark = pytest.mark.gpu

Side = tuple[Callable[[], Any], Any, Any, int]
"""Makes a model; its losses, its batches, and the parts of a step."""


def two_tower(data: TrainingSet) -> Side:
    config = TwoTowerConfig(dim=16, embedding_dim=16, hidden=(32,), gates=True)
    query, content = data.features.query.schema, data.features.content.schema
    pairs = data.examples.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    batches = RetrievalBatches(data, rows, batch_size=32, seed=SEED)
    return lambda: build_two_tower(query, content, config, SEED), models.two_tower.losses, batches, 1


def ranker(data: TrainingSet) -> Side:
    parts = {"vectors": True, "attention": True, "experts": 2, "gates": True, "esmm": True}
    config = RankerConfig(embedding_dim=8, bottom=(16,), top=(32, 16), **parts)
    labels = task_labels(data.examples, 20)
    rows = np.arange(data.examples.pairs.rows(TRAIN).stop)
    batches = RankingBatches(data, rows, labels, batch_size=512, seed=SEED)
    parts_of_a_step = models.ranker.PARTS
    return (
        lambda: build_ranker(data.features, tuple(labels), config, SEED),
        models.ranker.losses,
        batches,
        parts_of_a_step,
    )


@pytest.mark.parametrize("side", [two_tower, ranker])
def test_a_pass_on_the_gpu_loses_what_a_pass_on_the_cpu_loses(side, small_training_set):
    """From the same weights, step for step, within what TF32 rounds."""
    make, losses, batches, parts = side(small_training_set)
    weights: list[np.ndarray] = []
    found = {}
    for device in ("CPU:0", "GPU:0"):
        set_seed(SEED)
        with tf.device(device):
            model = make()
            loop = TrainingLoop(model, losses, batches[0], parts)
            weights = weights or model.get_weights()
            model.set_weights(weights)
            found[device] = list(loop.run(batches))
        assert all(variable.device.endswith(device) for variable in model.trainable_variables)
    assert len(found["GPU:0"]) > 5
    np.testing.assert_allclose(found["GPU:0"], found["CPU:0"], rtol=5e-3)


def test_what_is_trained_without_a_word_is_trained_on_the_gpu(
    small_two_tower: Trained, small_ranker: Trained
):
    for trained in (small_two_tower, small_ranker):
        assert {variable.device[-5:] for variable in trained.model.trainable_variables} == {"GPU:0"}
        assert all(np.isfinite(weight).all() for weight in trained.model.get_weights())
    assert tf.config.experimental.get_memory_info("GPU:0")["peak"] > 0
