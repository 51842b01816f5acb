"""What a content's tower reads of its closest contents: by the graph's order, no padding, no unseen ids."""

from __future__ import annotations

import numpy as np
import pytest

from market.item_graph import ItemGraph
from models.batches import UNSEEN
from models.blocks import table_of
from models.related import WithRelated, related_ids
from models.two_tower import TwoTowerConfig, build_two_tower, encode

GRAPH = ItemGraph(
    np.array([[1, 2, 3], [0, -1, -1], [-1, -1, -1], [0, 1, -1]], np.int32),
    np.array([[0.1, 0.3, 0.2], [0.5, 0, 0], [0, 0, 0], [0.2, 0.4, 0]], np.float32),
)


def test_the_closest_come_first_and_no_more_than_asked_for():
    found = related_ids(GRAPH, np.array([3, 4, 5, 6]), 7, 2)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[0, 0], [0, 0], [0, 0], [5, 6], [3, 0], [0, 0], [4, 3]])
    np.testing.assert_array_equal(related_ids(GRAPH, np.array([3, 4, 5, 6]), 7, 5)[:, 3:], 0)


def test_contents_without_an_id_of_their_own_have_none_and_are_none():
    found = related_ids(GRAPH, np.array([3, UNSEEN, UNSEEN, 4]), 5, 3)
    np.testing.assert_array_equal(found, [[0] * 3, [0] * 3, [0] * 3, [0, 4, 0], [0, 3, 0]])
    # Here the unseen ones are those with neighbours.
    assert not related_ids(GRAPH, np.array([UNSEEN, 3, 4, UNSEEN]), 5, 3).any()


@pytest.fixture(scope="module")
def related(small_training_set) -> np.ndarray:
    features = small_training_set.features.content
    ids = int(features.schema["content_id"].int_domain.max) + 1
    return related_ids(small_training_set.graph.graph, features.arrays["content_id"], ids, 5)


def test_a_content_moves_with_its_neighbours_and_with_no_others(small_training_set, related):
    features = small_training_set.features
    config = TwoTowerConfig(dim=8, embedding_dim=8)
    model = build_two_tower(features.query.schema, features.content.schema, config, 5, related)
    contents = small_training_set.content_arrays(np.arange(len(features.content)))
    encoded = features.content.arrays["content_id"]
    before = encode(model.candidate_encoder, contents)
    table = table_of(model)
    rows = table.embeddings.numpy()
    neighbour = related.max()
    rows[table.first["content_id"] + neighbour] += 1
    table.embeddings.assign(rows)
    change = np.abs(encode(model.candidate_encoder, contents) - before).max(axis=1)
    touched = (related == neighbour).any(axis=1)
    expected = touched[encoded] | (encoded == neighbour)
    assert touched[encoded].any()
    np.testing.assert_array_equal(change > 1e-6, expected)


def test_the_mean_of_neighbours_is_one_more_column_in_training_as_in_serving(small_training_set, related):
    features = small_training_set.features
    config = TwoTowerConfig(dim=8, embedding_dim=8)
    model = build_two_tower(features.query.schema, features.content.schema, config, 5, related)
    [block] = [layer for layer in model.submodules if isinstance(layer, WithRelated)]
    contents = small_training_set.content_arrays(np.arange(40))
    served, trained = (block(contents, training=training).numpy() for training in (False, True))
    np.testing.assert_allclose(trained, served, atol=1e-6)
    table = table_of(model)
    place = block.lookup.fields.index("related_content_id") * table.dim
    ids = related[contents["content_id"].ravel()]
    known = ids > 0
    vectors = table.embeddings.numpy()[table.first["content_id"] + ids] * known[..., None]
    mean = vectors.sum(axis=1) / np.maximum(known.sum(axis=1), 1)[:, None]
    np.testing.assert_allclose(served[:, place : place + table.dim], mean, atol=1e-6)
    assert known.any()


def test_a_negative_number_of_neighbours_is_refused():
    with pytest.raises(ValueError, match=r"two_tower\.related is -1"):
        TwoTowerConfig(related=-1)
