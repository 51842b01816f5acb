"""Models of several seeds are asked as one: the mean of what each says, here and in the served graphs."""

import numpy as np
import pytest
import tensorflow as tf

from models.batches import RankingBatches
from models.export import Layout, query_tower_to_onnx, ranker_to_onnx
from models.members import APART, Rankers, TwoTowers, mean_chance, members_of, train_members
from models.ranker import RankerConfig, build_ranker, predict, task_labels
from models.two_tower import TwoTowerConfig, build_two_tower, encode
from tests.models.test_export import packed, session


@pytest.fixture(scope="module")
def layout(small_training_set):
    features = small_training_set.features
    return Layout.of(features.query.schema, features.content.schema)


def test_the_product_of_vectors_side_by_side_is_the_mean_of_products(small_training_set):
    features = small_training_set.features
    config = TwoTowerConfig(dim=8, embedding_dim=8, hidden=(16,))
    towers = [build_two_tower(features.query.schema, features.content.schema, config, s) for s in range(3)]
    together, rows = TwoTowers(towers), np.arange(20)
    queries, contents = small_training_set.query_arrays(rows), small_training_set.content_arrays(rows)
    products = [
        encode(tower.query_encoder, queries) @ encode(tower.candidate_encoder, contents).T for tower in towers
    ]
    made = encode(together.query_encoder, queries) @ encode(together.candidate_encoder, contents).T
    np.testing.assert_allclose(made, np.mean(products, axis=0), atol=1e-6)
    assert members_of(together) == towers
    assert members_of(towers[0]) == [towers[0]]


def test_the_graph_of_several_towers_gives_their_vectors(small_training_set, layout):
    features = small_training_set.features
    config = TwoTowerConfig(dim=8, embedding_dim=8, hidden=(16,))
    towers = TwoTowers(
        [build_two_tower(features.query.schema, features.content.schema, config, s) for s in range(2)]
    )
    rows = np.arange(20)
    arrays = small_training_set.query_arrays(rows)
    expected = encode(towers.query_encoder, arrays)
    graph = query_tower_to_onnx(towers, features.query.schema, layout)
    named = {name: arrays[name].reshape(len(rows), -1) for name in features.query.schema.column_names}
    named = {name: x if name in layout.query_lists else x[:, 0] for name, x in named.items()}
    [made] = session(graph).run(["query_vector"], named)
    np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_the_graph_of_several_rankers_gives_the_mean_of_their_logits(small_training_set, layout, count):
    config = RankerConfig(embedding_dim=8, bottom=(16,), top=(16, 8))
    labels = task_labels(small_training_set.examples, 60)
    tasks = tuple(labels)
    models = [build_ranker(small_training_set.features, tasks, config, seed) for seed in range(count)]
    rankers = Rankers(models)
    rows = np.arange(30)
    batches = RankingBatches(small_training_set, rows, labels, batch_size=30, shuffle=False)
    each = np.stack([predict(model, batches)[0] for model in models])
    expected = 1 / (1 + np.exp(-np.log(each / (1 - each)).mean(axis=0)))
    np.testing.assert_allclose(predict(rankers, batches)[0], expected, rtol=1e-4)
    pairs = small_training_set.examples.pairs
    inputs = packed(small_training_set, layout, pairs.query[rows], pairs.content[rows, None])
    loaded = session(ranker_to_onnx(rankers, layout, tasks))
    taken = {value.name for value in loaded.get_inputs()}
    [made] = loaded.run(["probabilities"], {name: inputs[name] for name in taken})
    np.testing.assert_allclose(made[:, 0], expected, rtol=1e-3)


def test_a_mean_of_certainties_is_a_number():
    chances = [tf.constant([0.0, 1.0, 0.0]), tf.constant([0.0, 1.0, 1.0])]
    np.testing.assert_allclose(mean_chance(chances), [0, 1, 0.5], atol=1e-6)


def test_members_have_seeds_and_folders_of_their_own(tmp_path):
    asked = []

    def train(folder, seed):
        asked.append((folder.name, seed))
        return seed, f"state of {seed}"

    model, states = train_members(train, list, 3, tmp_path / "ranker", 5)
    assert asked == [("ranker", 5), ("ranker-1", 5 + APART), ("ranker-2", 5 + 2 * APART)]
    assert (model, states) == ([5, 5 + APART, 5 + 2 * APART], [f"state of {s}" for s in model])
    assert train_members(train, list, 1, tmp_path / "ranker", 5) == (5, ["state of 5"])


@pytest.mark.parametrize("config", [RankerConfig, TwoTowerConfig])
def test_no_members_are_refused(config):
    with pytest.raises(ValueError, match="members is 0; it must be at least 1"):
        config(members=0)
