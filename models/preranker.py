"""The pre-ranker, distilled: it learns the order that the ranker gives to retrieved candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from market.knobs import expect

from .training import set_seed, traced

import tensorflow as tf  # isort: skip


@dataclass(frozen=True)
class PreRankerConfig:
    """Knobs of the pre-ranker.

    Attributes:
        queries: training queries whose retrieved candidates the ranker scores for it (queries).
        dim: size of the projections of query and content.
        hidden: width of the hidden layer.
        epochs: passes over these queries.
        batch_size: queries in a batch (queries).
        learning_rate: of Adam.
        sharpness: standard deviations of the ranker's scores among a query's candidates are multiplied by it
            before they become shares; the more, the more the first places count.
    """

    queries: int = 2000
    dim: int = 16
    hidden: int = 32
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 3e-3
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        expect(self, "preranker", "queries dim hidden epochs batch_size", least=1)
        expect(self, "preranker", "learning_rate sharpness", above=0)


@dataclass(frozen=True)
class PreRankerWeights:
    """What `PreRanker` in serving computes with; `content` float32[D, K] projects content vectors."""

    query: np.ndarray
    content: np.ndarray
    hidden: np.ndarray
    bias: np.ndarray
    out: np.ndarray


def train_preranker(
    query_vector: np.ndarray,
    content_vector: np.ndarray,
    numbers: np.ndarray,
    value: np.ndarray,
    config: PreRankerConfig,
    seed: int,
) -> PreRankerWeights:
    """Fit the order of the ranker's values, list by list.

    The loss is the cross-entropy of the two distributions over a list that its scores stand for (ListNet, Cao
    et al., ICML 2007): the first places, which decide what is ranked, weigh most.

    Args:
        query_vector: float32[Q, D].
        content_vector: float32[Q, C, D], of each query's candidates.
        numbers: float32[Q, C, G], the candidates' numbers as the ranker reads them.
        value: float32[Q, C], the ranker's; -inf where there is no candidate.
    """
    set_seed(seed)
    present = np.isfinite(value)
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    filled = np.where(present, value, 0)
    mean = filled.sum(axis=1, keepdims=True) / count
    spread = np.sqrt((np.where(present, filled - mean, 0) ** 2).sum(axis=1, keepdims=True) / count)
    target = np.where(present, (filled - mean) / np.maximum(spread, 1e-9) * config.sharpness, -np.inf)
    share = np.exp(target - target.max(axis=1, keepdims=True, initial=-1e9))
    share = (share / np.maximum(share.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)

    def weights(*shape: int) -> tf.Variable:
        return tf.Variable(tf.random.normal(shape, stddev=shape[0] ** -0.5, seed=seed))

    width = 2 * config.dim + numbers.shape[-1] + 1
    query, content = (weights(query_vector.shape[-1], config.dim) for _ in range(2))
    hidden, bias, out = (
        weights(width, config.hidden),
        tf.Variable(tf.zeros(config.hidden)),
        weights(config.hidden),
    )
    learned = [query, content, hidden, bias, out]
    optimizer = tf.keras.optimizers.Adam(config.learning_rate)

    @traced
    def step(q: tf.Tensor, c: tf.Tensor, g: tf.Tensor, goal: tf.Tensor, there: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            asked, offered = (q @ query)[:, tf.newaxis], c @ content
            cosine = tf.reduce_sum(q[:, tf.newaxis] * c, axis=-1, keepdims=True)
            x = tf.concat([asked * offered, offered, g, cosine], axis=-1)
            score = tf.linalg.matvec(tf.nn.relu(x @ hidden + bias), out)
            score = tf.where(there, score, -1e9)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(goal, score))
        optimizer.apply_gradients(zip(tape.gradient(loss, learned), learned))
        return loss

    random = np.random.default_rng(seed)
    arrays = [a.astype(np.float32) for a in (query_vector, content_vector, numbers, share)] + [present]
    for _ in range(config.epochs):
        order = random.permutation(len(value))
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            step(*(tf.constant(array[rows]) for array in arrays))
    return PreRankerWeights(*(variable.numpy() for variable in learned))
