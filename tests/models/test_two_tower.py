"""The two-tower: logits are the published formula, and a history moves the query."""

from __future__ import annotations

import numpy as np
import pytest

from models.batches import LOG_Q, RetrievalBatches
from models.two_tower import build_two_tower, encode, recall_in_market
from tests.models.conftest import Trained
from workflows.examples import TRAIN, VALID


@pytest.fixture(scope="module")
def batch(small_training_set) -> dict[str, np.ndarray]:
    pairs = small_training_set.examples.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    return RetrievalBatches(small_training_set, rows, batch_size=32, seed=1)[0][0]


def vectors(model, batch) -> tuple[np.ndarray, np.ndarray]:
    query = {name: batch[name] for name in model.query_encoder.schema.column_names}
    content = {name: batch[name] for name in model.candidate_encoder.schema.column_names}
    return encode(model.query_encoder, query), encode(model.candidate_encoder, content)


def logits(model, batch) -> np.ndarray:
    """[B, 1 + B]: the positive's, then those of all contents of the batch, as the loss sees them."""
    prediction = model(batch, training=True)
    np.testing.assert_array_equal(prediction.targets.numpy().argmax(axis=1), 0)
    np.testing.assert_array_equal(prediction.targets.numpy().sum(axis=1), 1)
    return prediction.outputs.numpy()


def expected_logits(query, content, log_q, temperature: float, strength: float) -> np.ndarray:
    """q·c / T - strength · log q, by hand."""
    scores = query @ content.T / temperature - strength * log_q[None, :]
    return np.concatenate([np.diag(scores)[:, None], scores], axis=1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_logits_are_cosines_over_temperature_less_log_q(strength, small_two_tower: Trained, batch):
    model = small_two_tower.model
    correction = model.last.post
    before = correction.strength
    correction.strength = strength
    try:
        found = logits(model, batch)
    finally:
        correction.strength = before
    query, content = vectors(model, batch)
    expected = expected_logits(
        query, content, batch[LOG_Q][:, 0], small_two_tower.config.temperature, strength
    )
    kept = np.concatenate(
        [np.ones((len(query), 1), bool), batch["content_id"] != batch["content_id"].T], axis=1
    )
    assert len(np.unique(batch[LOG_Q])) > 3
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-4, atol=1e-4)


def test_the_configured_strength_is_the_corrections(small_two_tower: Trained):
    correction = small_two_tower.model.last.post
    config = small_two_tower.config
    assert (correction.strength, correction.temperature) == (config.logq, config.temperature)
    again = type(correction).from_config(correction.get_config())
    assert (again.strength, again.temperature) == (config.logq, config.temperature)


def test_a_content_is_no_negative_of_a_query_that_wanted_it(small_two_tower: Trained, batch):
    twice = {name: array.copy() for name, array in batch.items()}
    for name in (*small_two_tower.model.candidate_encoder.schema.column_names, LOG_Q):
        twice[name][5] = twice[name][2]
    found = logits(small_two_tower.model, twice)
    same = twice["content_id"] == twice["content_id"].T
    assert same[2, 5]
    assert same.sum() > len(same)
    assert (found[:, 1:][same] < -5e3).all()
    assert (found[:, 1:][~same] > -1e3).all()
    assert (found[:, 0] > -1e3).all()
    assert np.isfinite(found).all()


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
    of_query = {variable.ref() for variable in model.query_encoder.trainable_variables}
    of_content = {variable.ref() for variable in model.candidate_encoder.trainable_variables}
    shared = [variable.deref().shape[0] for variable in of_query & of_content]
    schema = model.candidate_encoder.schema
    expected = [
        schema[name].int_domain.max + 1 for name in ("category", "content_id", "content_x_topic", "seller_id")
    ]
    assert sorted(shared) == sorted(expected)


def test_training_left_the_towers_better_than_it_found_them(small_two_tower: Trained, small_training_set):
    features, pairs = small_training_set.features, small_training_set.examples.pairs
    rows = np.flatnonzero(pairs.positive & (pairs.split == TRAIN))
    query = small_training_set.query_arrays(pairs.query[rows])
    content = small_training_set.content_arrays(np.arange(len(features.content)))
    fresh = build_two_tower(features.query.schema, features.content.schema, small_two_tower.config, seed=5)
    recalls = [
        recall_in_market(
            small_training_set,
            encode(model.query_encoder, query),
            encode(model.candidate_encoder, content),
            rows,
            20,
        )
        for model in (fresh, small_two_tower.model)
    ]
    assert recalls[1] > 1.2 * recalls[0]


def test_recall_ranks_among_the_markets_contents_and_leaves_the_past_out(small_training_set):
    examples = small_training_set.examples
    random = np.random.default_rng(0)
    pairs = np.flatnonzero(examples.pairs.positive & (examples.pairs.split == VALID))[:80]
    query = random.normal(size=(len(pairs), 4)).astype(np.float32)
    content = random.normal(size=(len(examples.contents), 4)).astype(np.float32)
    hits = 0
    for vector, pair in zip(query, pairs):
        row, wanted = examples.pairs.query[pair], examples.pairs.content[pair]
        scores = content @ vector
        past = {int(c) for c in examples.queries.history[row] if c >= 0} - {int(wanted)}
        offered = set(np.flatnonzero(examples.available[examples.queries.market[row]]).tolist()) - past
        hits += sum(scores[other] > scores[wanted] for other in offered) < 40
    found = recall_in_market(small_training_set, query, content, pairs, 40)
    assert 0 < hits < len(pairs)
    assert found == pytest.approx(hits / len(pairs))
