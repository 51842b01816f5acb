"""Blocks of both models: padding counts for nothing, and what training computes is what serving computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.blocks import EmbeddingTable, InputVector, InteractionDense, Lookup, masked_mean

import tensorflow as tf  # isort: skip
from merlin.schema import Tags  # isort: skip

lists = st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=5)


def padded(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int64)


@given(lists, st.integers(4, 7))
def test_the_mean_is_over_known_ids_alone(rows, width):
    vectors = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    ids = padded(rows, width)
    found = masked_mean(tf.constant(vectors[ids]), tf.constant(ids)).numpy()
    expected = [vectors[row].mean(axis=0) if row else np.zeros(3) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def lookup_of(data, dim: int = 4, seed: int = 1) -> Lookup:
    """A lookup of every categorical column of queries and contents."""
    schema = data.features.query.schema + data.features.content.schema
    return Lookup(schema, EmbeddingTable(schema, dim, seed))


def columns_of(data, rows: int) -> dict[str, tf.Tensor]:
    last = np.arange(rows)
    return {name: tf.constant(x) for name, x in (data.query_arrays(last) | data.content_arrays(last)).items()}


def of_domain(lookup: Lookup, column: str, ids: list[int]) -> np.ndarray:
    """Rows of the table that belong to ids of a column."""
    return lookup.table.embeddings.numpy()[lookup.first[column] + np.array(ids)]


@pytest.mark.parametrize("training", [False, True])
def test_a_scalar_is_its_row_and_a_list_the_mean_of_its_known_rows(training, small_training_set):
    lookup = lookup_of(small_training_set)
    x = columns_of(small_training_set, 2)
    x["hist_content_id"] = tf.constant(padded([[3, 4], [5]], 10))
    x["hist_category"] = tf.constant(padded([[], [2, 2, 6]], 10))
    x["kind"] = tf.constant([[0], [3]], tf.int64)
    found = dict(zip(lookup.fields, tf.unstack(lookup(x, training=training), axis=1)))
    for name, expected in (
        (
            "hist_content_id",
            [of_domain(lookup, "content_id", [3, 4]).mean(axis=0), of_domain(lookup, "content_id", [5])[0]],
        ),
        ("hist_category", [np.zeros(4), of_domain(lookup, "category", [2, 2, 6]).mean(axis=0)]),
        ("kind", of_domain(lookup, "kind", [0, 3])),
    ):
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
    # The padding's own row has a vector; it is never looked at.
    assert of_domain(lookup, "content_id", [0]).any()


def test_training_and_serving_look_up_the_same_and_teach_the_same_rows(small_training_set):
    lookup = lookup_of(small_training_set)
    x = columns_of(small_training_set, 300)
    weights = tf.random.stateless_normal([300, len(lookup.fields), 4], [1, 2])

    def result(training: bool) -> tuple[np.ndarray, np.ndarray]:
        with tf.GradientTape() as tape:
            made = lookup(x, training=training)
            total = tf.reduce_sum(made * weights)
        gradient = tape.gradient(total, lookup.table.embeddings)
        return made.numpy(), tf.convert_to_tensor(gradient).numpy()

    for served, trained in zip(result(False), result(True)):
        np.testing.assert_allclose(trained, served, rtol=1e-4, atol=1e-5)


def test_domains_divide_the_table_and_what_follows_a_column_shares_its_rows(small_training_set):
    lookup = lookup_of(small_training_set)
    sizes = {column.int_domain.name: int(column.int_domain.max) + 1 for column in lookup.schema}
    first = {column.int_domain.name: lookup.first[column.name] for column in lookup.schema}
    ends = np.cumsum([sizes[domain] for domain in sorted(first, key=first.get)])
    assert sorted(first.values()) == [0, *ends[:-1]]
    assert lookup.table.embeddings.shape == (ends[-1], 4)
    assert len(lookup.lists) == 4
    for name in lookup.lists:
        assert lookup.first[name] == lookup.first[name.removeprefix("hist_")]


def test_a_table_starts_alike_under_a_seed_and_no_two_domains_do(small_training_set):
    first, again, other = (lookup_of(small_training_set, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.table.embeddings, again.table.embeddings)
    assert not np.isclose(first.table.embeddings, other.table.embeddings).any(axis=1).all()
    assert not (of_domain(first, "kind", [1]) == of_domain(first, "category", [1])).any()


def test_numbers_and_vectors_stand_beside_embeddings(small_training_set):
    schema = small_training_set.features.content.schema
    arrays = small_training_set.content_arrays(np.arange(5))
    made = InputVector(schema, EmbeddingTable(schema, 4, seed=1))(
        {name: tf.constant(x) for name, x in arrays.items()}
    ).numpy()
    numbers = schema.select_by_tag(Tags.CONTINUOUS).column_names
    vector = arrays["v_image"]
    assert made.shape == (5, 4 * (len(schema) - len(numbers) - 1) + len(numbers) + vector.shape[1])
    for column in [*(arrays[name][:, 0] for name in numbers), *vector.T]:
        assert (made == column[:, None]).all(axis=0).any()


def test_interactions_are_the_dense_layer_over_all_pairs_of_vectors():
    random = np.random.default_rng(0)
    first, vectors = (random.normal(size=shape).astype(np.float32) for shape in ((6, 3), (6, 4, 3)))
    layer = InteractionDense(7)
    inputs = tf.constant(first), tf.constant(vectors)
    layer(inputs)
    layer.bias.assign(random.normal(size=7))

    def plain(first, vectors):
        z = tf.concat([first[:, None], vectors], 1)
        pairs = [tf.reduce_sum(z[:, i] * z[:, j], axis=1) for i in range(5) for j in range(i)]
        x = tf.concat([first, tf.stack(pairs, 1)], axis=1)
        return tf.nn.relu(tf.matmul(x, layer.kernel) + layer.bias)

    def result(function) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            made = function(*inputs)
            total = tf.reduce_sum(made * tf.range(1.0, 8.0))
        return [made, *tape.gradient(total, [*inputs, layer.kernel, layer.bias])]

    for found, expected in zip(result(lambda *x: layer(x)), result(plain)):
        np.testing.assert_allclose(found, expected, atol=1e-4)
