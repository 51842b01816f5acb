"""The two-tower: logits are the published formula, and a history moves the query."""

from __future__ import annotations

import numpy as np
import pytest

from models.batches import LOG_Q, RetrievalBatches
from models.gates import Gates
from models.two_tower import TwoTowerConfig, build_two_tower, encode, losses, places_in_market, softmax_losses
from tests.models.conftest import Trained
from workflows.examples import TRAIN, VALID

import tensorflow as tf  # isort: skip


@pytest.fixture(scope="module")
def batch(small_training_set) -> dict[str, np.ndarray]:
    pairs = small_training_set.examples.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    return RetrievalBatches(small_training_set, rows, batch_size=32, seed=1)[0][0]


def vectors(model, batch) -> tuple[np.ndarray, np.ndarray]:
    query = {name: batch[name] for name in model.query_encoder.schema.column_names}
    content = {name: batch[name] for name in model.candidate_encoder.schema.column_names}
    return encode(model.query_encoder, query), encode(model.candidate_encoder, content)


def losses_by_hand(model, batch, strength: float, temperature: float) -> np.ndarray:
    """-log softmax of q·c / T - strength · log q over the batch's contents, those of one id counted once."""
    query, content = (x.astype(np.float64) for x in vectors(model, batch))
    logits = query @ content.T / temperature - strength * batch[LOG_Q].T
    ids = batch["content_id"]
    logits[(ids == ids.T) & ~np.eye(len(ids), dtype=bool)] = -np.inf
    return np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_loss_is_the_softmax_of_cosines_over_temperature_less_log_q(
    strength, small_two_tower: Trained, batch
):
    model = small_two_tower.model
    before = model.last.strength
    model.last.strength = strength
    try:
        found = losses(model, batch, None).numpy()
    finally:
        model.last.strength = before
    assert len(np.unique(batch[LOG_Q])) > 3
    expected = losses_by_hand(model, batch, strength, small_two_tower.config.temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_configured_correction_is_the_models(small_two_tower: Trained):
    output, config = small_two_tower.model.last, small_two_tower.config
    assert (output.strength, output.temperature) == (config.logq, config.temperature)


def test_a_content_is_no_negative_of_a_query_that_wanted_it(small_two_tower: Trained, batch):
    twice = {name: array.copy() for name, array in batch.items()}
    for name in (*small_two_tower.model.candidate_encoder.schema.column_names, LOG_Q):
        twice[name][5] = twice[name][2]
    found = losses(small_two_tower.model, twice, None).numpy()
    config = small_two_tower.config
    expected = losses_by_hand(small_two_tower.model, twice, config.logq, config.temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # Counted as negatives of each other they would cost at least log 2.
    alone = {name: np.repeat(array[:1], 3, axis=0) for name, array in twice.items()}
    np.testing.assert_allclose(losses(small_two_tower.model, alone, None), 0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_the_softmaxs_gradient_is_that_of_its_definition(rows):
    random = np.random.default_rng(rows)
    queries, contents = (tf.constant(random.normal(size=(rows, 4)) * 3, tf.float64) for _ in range(2))
    ids = tf.constant(random.integers(0, 4, rows))
    weights = tf.constant(random.uniform(0.5, 2, rows))

    def plain(queries, contents):
        logits = tf.matmul(queries, contents, transpose_b=True)
        same = tf.linalg.set_diag(ids[:, None] == ids, tf.zeros(rows, tf.bool))
        logits = tf.where(same, tf.cast(-1e9, tf.float64), logits)
        return tf.reduce_logsumexp(logits, axis=1) - tf.linalg.diag_part(logits)

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch([queries, contents])
            total = tf.reduce_sum(function(queries, contents) * weights)
        return total, *tape.gradient(total, [queries, contents])

    for found, expected in zip(gradients(lambda q, c: softmax_losses(q, c, ids)), gradients(plain)):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_logits_of_any_size_have_finite_losses():
    queries, contents = np.array([[300.0], [-300.0]], np.float32), np.array([[1.0], [-1.0]], np.float32)
    found = softmax_losses(tf.constant(queries), tf.constant(contents), tf.constant([0, 1]))
    np.testing.assert_allclose(found, 0, atol=1e-6)
    swapped = softmax_losses(tf.constant(queries[::-1]), tf.constant(contents), tf.constant([0, 1]))
    np.testing.assert_allclose(swapped, 600, rtol=1e-6)


def test_outside_training_the_score_is_the_cosine(small_two_tower: Trained, batch):
    query, content = vectors(small_two_tower.model, batch)
    found = np.asarray(small_two_tower.model(batch, training=False)).ravel()
    np.testing.assert_allclose(found, (query * content).sum(axis=1), rtol=1e-4, atol=1e-5)


def test_vectors_have_length_one_however_they_are_batched(small_two_tower: Trained, small_training_set):
    arrays = small_training_set.query_arrays(np.arange(50))
    whole = encode(small_two_tower.model.query_encoder, arrays)
    assert whole.shape == (50, small_two_tower.config.dim)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        encode(small_two_tower.model.query_encoder, arrays, batch_size=7), whole, atol=1e-6
    )


def test_a_history_moves_the_query_and_its_padding_does_not(small_two_tower: Trained, small_training_set):
    arrays = small_training_set.query_arrays(np.arange(20))
    encoder = small_two_tower.model.query_encoder
    before = encode(encoder, arrays)
    rich = small_training_set.examples.queries.history[:20, 0] >= 0
    assert rich.any()
    assert not rich.all()
    for name in (name for name in arrays if name.startswith("hist_")):
        emptied = encode(encoder, arrays | {name: np.zeros_like(arrays[name])})
        moved = np.abs(emptied - before).max(axis=1) > 1e-4
        np.testing.assert_array_equal(moved, rich, err_msg=name)
        # A mean has no order: the same events the other way round, padding first, are the same history.
        turned = encode(encoder, arrays | {name: arrays[name][:, ::-1].copy()})
        np.testing.assert_allclose(turned, before, atol=1e-5, err_msg=name)


def test_a_content_learned_in_a_history_is_learned_as_a_content(small_two_tower: Trained):
    model = small_two_tower.model
    of_query, of_content = (
        encoder.blocks[0].lookup for encoder in (model.query_encoder, model.candidate_encoder)
    )
    assert of_query.table is of_content.table
    assert len(of_query.lists) == 4
    for history in of_query.lists:
        assert of_query.first[history] == of_content.first[history.removeprefix("hist_")]


def test_training_left_the_towers_better_than_it_found_them(small_two_tower: Trained, small_training_set):
    features, pairs = small_training_set.features, small_training_set.examples.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    query = small_training_set.query_arrays(pairs.query[rows])
    content = small_training_set.content_arrays(np.arange(len(features.content)))
    fresh = build_two_tower(features.query.schema, features.content.schema, small_two_tower.config, seed=5)
    recalls = []
    for model in (fresh, small_two_tower.model):
        vectors = encode(model.query_encoder, query), encode(model.candidate_encoder, content)
        recalls.append((places_in_market(small_training_set, *vectors, rows) < 20).mean())
    assert recalls[1] > 1.2 * recalls[0]


def test_places_are_those_among_the_markets_contents_without_the_past(small_training_set):
    examples = small_training_set.examples
    random = np.random.default_rng(0)
    pairs = np.flatnonzero(examples.pairs.positive & (examples.pairs.split == VALID))[:80]
    query = random.normal(size=(len(pairs), 4)).astype(np.float32)
    content = random.normal(size=(len(examples.contents), 4)).astype(np.float32)
    expected = []
    for vector, pair in zip(query, pairs):
        row, wanted = examples.pairs.query[pair], examples.pairs.content[pair]
        scores = content @ vector
        past = {int(c) for c in examples.queries.history[row] if c >= 0} - {int(wanted)}
        offered = set(np.flatnonzero(examples.available[examples.queries.market[row]]).tolist()) - past
        expected.append(sum(scores[other] > scores[wanted] for other in offered))
    np.testing.assert_array_equal(places_in_market(small_training_set, query, content, pairs), expected)


def test_gates_turn_the_queries_of_a_market_alone(small_training_set, batch):
    features = small_training_set.features
    config = TwoTowerConfig(dim=8, embedding_dim=8, hidden=(16,), gates=True)
    model = build_two_tower(features.query.schema, features.content.schema, config, seed=5)
    query, content = vectors(model, batch)
    [gates] = [layer for layer in model.submodules if isinstance(layer, Gates)]  # contents are everybody's
    np.testing.assert_array_equal(gates.kernels["market"], 0)
    here = int(batch["market"][0, 0])
    kernel = np.zeros(gates.kernels["market"].shape)
    kernel[here] = np.random.default_rng(0).normal(size=gates.width)
    gates.kernels["market"].assign(kernel)
    turned, same = vectors(model, batch)
    np.testing.assert_array_equal(same, content)
    assert (np.abs(turned - query).max(axis=1) > 1e-3).all()
    gates.kernels["market"].assign(np.roll(kernel, 1, axis=0))
    np.testing.assert_allclose(vectors(model, batch)[0], query, atol=1e-6)
