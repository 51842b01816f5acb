"""Blocks of both models: padding counts for nothing, and what follows a column shares its table."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.blocks import embedding_tables, input_block, lookup_block, masked_mean

import tensorflow as tf  # isort: skip
from merlin.schema import Tags  # isort: skip

lists = st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=5)


def padded(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int64)


@settings(deadline=None)
@given(lists, st.integers(4, 7))
def test_the_mean_is_over_known_ids_alone(rows, width):
    vectors = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    ids = padded(rows, width)
    found = masked_mean(tf.constant(vectors[ids]), tf.constant(ids)).numpy()
    expected = [vectors[row].mean(axis=0) if row else np.zeros(3) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_more_padding_changes_no_embedding(small_training_set):
    schema = small_training_set.features.query.schema.select_by_name("hist_content_id")
    tables = embedding_tables(schema, 4, seed=1)
    block = lookup_block(schema, tables)
    short = padded([[3, 4], [5]], 10)
    found = block({"hist_content_id": tf.constant(short)})["hist_content_id"].numpy()
    table = tables["content_id"].table.embeddings.numpy()
    np.testing.assert_allclose(found, [table[[3, 4]].mean(axis=0), table[5]], atol=1e-6)
    # The padding's own row has a vector; it is never looked at.
    assert table[0].any()


def test_a_history_and_its_content_share_one_variable(small_training_set):
    query, content = small_training_set.features.query.schema, small_training_set.features.content.schema
    tables = embedding_tables(query + content, 4, seed=1)
    rows = np.array([0, 1])
    of_query, of_content = lookup_block(query, tables), lookup_block(content, tables)
    of_query({name: tf.constant(x) for name, x in small_training_set.query_arrays(rows).items()})
    of_content({name: tf.constant(x) for name, x in small_training_set.content_arrays(rows).items()})
    mine = {variable.ref() for variable in of_query.trainable_variables}
    theirs = {variable.ref() for variable in of_content.trainable_variables}
    followed = [name for name in query.column_names if name.startswith("hist_")]
    shared = {tables[name.removeprefix("hist_")].table.embeddings.ref() for name in followed}
    assert len(followed) == 4
    assert mine & theirs == shared
    assert len(mine | theirs) == len(tables) < len(query.select_by_tag(Tags.CATEGORICAL)) + len(content)


def test_tables_start_alike_under_a_seed_and_unlike_one_another(small_training_set):
    schema = small_training_set.features.content.schema.select_by_name(["kind", "category"])

    def start(seed: int) -> dict[str, np.ndarray]:
        tables = embedding_tables(schema, 4, seed)
        ids = {name: tf.constant([[1], [2]], tf.int64) for name in schema.column_names}
        return {name: x.numpy() for name, x in lookup_block(schema, tables)(ids).items()}

    first, again, other = start(1), start(1), start(2)
    assert all((first[name] == again[name]).all() for name in first)
    assert not any((first[name] == other[name]).all() for name in first)
    assert not (first["kind"] == first["category"]).all()


def test_numbers_stand_beside_embeddings(small_training_set):
    schema = small_training_set.features.content.schema
    arrays = small_training_set.content_arrays(np.arange(5))
    made = input_block(schema, embedding_tables(schema, 4, seed=1))(
        {name: tf.constant(x) for name, x in arrays.items()}
    ).numpy()
    numbers = schema.select_by_tag(Tags.CONTINUOUS).column_names
    assert made.shape == (5, 4 * (len(schema) - len(numbers)) + len(numbers))
    for name in numbers:
        assert (made == arrays[name]).all(axis=0).any()
