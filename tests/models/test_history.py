"""Attention over the history: what fits a candidate counts, padding and order do not."""

from __future__ import annotations

import numpy as np
import pytest

from models.batches import HISTORY, UNSEEN
from models.blocks import EmbeddingTable, Lookup
from models.history import HistoryAttention, Items, history_length

import tensorflow as tf  # isort: skip


@pytest.fixture
def items(small_training_set) -> Items:
    features = small_training_set.features
    schema = features.query.schema + features.content.schema
    return Items(features.content, Lookup(schema, EmbeddingTable(schema, 4, seed=1)), vectors=True)


def test_a_content_is_the_same_by_its_row_by_its_columns_and_in_the_table(items, small_training_set):
    rows = np.array([5, 0, 17])
    x = small_training_set.content_arrays(rows)
    ids = np.concatenate([x[name] for name in items.columns], axis=1)
    by_columns = items(items.lookup.scalar_vectors(tf.constant(ids), items.columns), [x["v_image"]]).numpy()
    np.testing.assert_allclose(items.of_rows(tf.constant(rows + 1)), by_columns, atol=1e-6)
    table = items.table(batch=100)
    assert table.shape == (len(small_training_set.features.content) + 1, 4)
    np.testing.assert_allclose(table[rows + 1], by_columns, atol=1e-6)
    assert not table[0].any()


def test_contents_of_histories_are_computed_once_and_stand_where_they_were(items):
    rows = tf.constant([[3, 8, 0], [8, 8, 3]], tf.int32)
    made = items.of_histories(rows).numpy()
    np.testing.assert_allclose(
        made, items.of_rows(tf.reshape(rows, [-1])).numpy().reshape(2, 3, 4), atol=1e-6
    )


def test_new_contents_differ_by_their_vectors_alone(items, small_training_set):
    x = small_training_set.content_arrays(np.array([1, 2]))
    unseen = np.full((2, len(items.columns)), UNSEEN)
    embeddings = items.lookup.scalar_vectors(tf.constant(unseen), items.columns)
    one, other = items(embeddings, [x["v_image"]]).numpy()
    assert np.abs(one - other).max() > 1e-3
    same = items(embeddings, [np.zeros_like(x["v_image"])]).numpy()
    np.testing.assert_array_equal(same[0], same[1])


def attention(dim: int = 3) -> HistoryAttention:
    layer = HistoryAttention()
    layer.build((None, None, dim))
    layer.kernel.assign(tf.eye(dim) * 4)
    return layer


def test_attention_finds_what_fits_and_nothing_where_nothing_does():
    past = tf.constant([[[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]])
    candidates = tf.constant([[[2.0, 0, 0], [0, 2.0, 0], [-2.0, -2.0, -2.0]]])
    found = attention()(candidates, past, tf.fill([1, 3], True)).numpy()[0]
    np.testing.assert_allclose(found[:2], [[1, 0, 0], [0, 2, 0]], atol=0.01)
    np.testing.assert_allclose(found[2], 0, atol=0.01)


def test_padding_and_the_order_of_events_count_nothing():
    random = np.random.default_rng(0)
    past, candidates = (random.normal(size=(2, n, 3)).astype(np.float32) for n in (4, 5))
    known = np.array([[True, True, True, False], [False] * 4])
    found = attention()(candidates, past, known).numpy()
    other = np.where(known[..., None], past, 100)
    turned = [2, 0, 1, 3]
    again = attention()(candidates, other[:, turned], known[:, turned]).numpy()
    np.testing.assert_allclose(again, found, atol=1e-5)
    np.testing.assert_array_equal(found[1], 0)


def test_a_batch_has_histories_as_rows_counted_from_one(small_training_set):
    queries = small_training_set.examples.queries
    made = small_training_set.history_rows(np.arange(50))[HISTORY]
    assert made.shape == (50, history_length(small_training_set.features.query.schema))
    np.testing.assert_array_equal(made - 1, queries.history[:50])
