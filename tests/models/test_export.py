"""Exported graphs: the numbers of Keras, for one query or many, one candidate or many."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from market.statistics import PAIR_FEATURES
from models.batches import TrainingSet
from models.export import Layout, content_tower_to_onnx, query_tower_to_onnx, ranker_to_onnx
from models.ranker import RankerConfig, build_ranker
from models.two_tower import encode

DIM = 4
TASKS = {"one task": ("relevant",), "two tasks": ("click", "order")}


def session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def layout(small_training_set: TrainingSet) -> Layout:
    features = small_training_set.features
    return Layout.of(features.query.schema, features.content.schema)


@pytest.fixture(scope="module")
def query_graph(small_two_tower, small_training_set, layout) -> onnx.ModelProto:
    return query_tower_to_onnx(small_two_tower.model, small_training_set.features.query.schema, layout)


@pytest.fixture(scope="module", params=TASKS.values(), ids=TASKS)
def ranker(request, small_training_set, layout) -> tuple[Any, tuple[str, ...], onnx.ModelProto]:
    """A ranker whose weights are all drawn, and its graph."""
    features = small_training_set.features
    config = RankerConfig(embedding_dim=DIM, bottom=(6,), top=(9, 5))
    model = build_ranker(features.query.schema, features.content.schema, request.param, config, seed=1)
    keras_scores(model, request.param, small_training_set, np.array([0]), np.array([[0]]))  # builds it
    random = np.random.default_rng(2)
    model.set_weights([random.normal(scale=0.5, size=w.shape) for w in model.get_weights()])
    return model, request.param, ranker_to_onnx(model, layout, request.param)


def keras_scores(model, tasks, data: TrainingSet, query: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The model's own predictions for every (query, candidate), one row each: float32[B, C, T]."""
    flat_query, flat = np.repeat(query, content.shape[1]), content.ravel()
    x = data.query_arrays(flat_query) | data.content_arrays(flat)
    x |= data.pair_arrays(flat_query, flat, np.zeros(len(flat), bool))
    return model(x, training=False).numpy().reshape(*content.shape, len(tasks))


def packed(
    data: TrainingSet, layout: Layout, query: np.ndarray, content: np.ndarray
) -> dict[str, np.ndarray]:
    """The ranker graph's inputs."""
    encoded = data.features.query.arrays
    ids, numbers = layout.pack_contents(data.features.content.arrays)
    flat_query = np.repeat(query, content.shape[1])
    pairs = data.pair_arrays(flat_query, content.ravel(), np.zeros(content.size, bool))
    pair_numbers = np.concatenate([pairs[name] for name in PAIR_FEATURES], axis=1)
    pair_numbers = pair_numbers.reshape(*content.shape, len(PAIR_FEATURES))
    return {
        "query_ids": np.stack([encoded[name][query] for name in layout.query_ids], axis=1),
        "query_lists": np.stack([encoded[name][query] for name in layout.query_lists], axis=1),
        "query_numbers": np.stack([encoded[name][query] for name in layout.query_numbers], axis=1),
        "content_ids": ids[content],
        "content_numbers": np.concatenate([numbers[content], pair_numbers], axis=-1),
    }


def drawn(data: TrainingSet, batch: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(batch * 100 + candidates)
    query = random.integers(0, len(data.features.query), batch)
    return query, random.integers(0, len(data.features.content), (batch, candidates))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_query_tower_gives_keras_vectors_and_packs_what_it_read(
    batch, query_graph, small_two_tower, small_training_set, layout
):
    rows, _ = drawn(small_training_set, batch, 1)
    encoded = small_training_set.features.query.arrays
    outputs = ["query_vector", "query_ids", "query_lists", "query_numbers"]
    vector, ids, lists, numbers = session(query_graph).run(outputs, {k: a[rows] for k, a in encoded.items()})
    expected = encode(small_two_tower.model.query_encoder, small_training_set.query_arrays(rows))
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    for place, name in enumerate(layout.query_ids):
        np.testing.assert_array_equal(ids[:, place], encoded[name][rows])
    for place, name in enumerate(layout.query_lists):
        np.testing.assert_array_equal(lists[:, place], encoded[name][rows])
    for place, name in enumerate(layout.query_numbers):
        np.testing.assert_array_equal(numbers[:, place], encoded[name][rows])
    every = {*layout.query_ids, *layout.query_lists, *layout.query_numbers}
    assert every == set(encoded)


def test_the_content_tower_gives_keras_vectors(small_two_tower, small_training_set, layout):
    features = small_training_set.features.content
    graph = session(content_tower_to_onnx(small_two_tower.model, features.schema, layout))
    for rows in (np.array([7]), np.arange(len(features))):
        [found] = graph.run(["content_vector"], {name: a[rows] for name, a in features.arrays.items()})
        expected = encode(small_two_tower.model.candidate_encoder, small_training_set.content_arrays(rows))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("candidates", [1, 20])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_ranker_gives_keras_probabilities(batch, candidates, ranker, small_training_set, layout):
    model, tasks, graph = ranker
    query, content = drawn(small_training_set, batch, candidates)
    [found] = session(graph).run(None, packed(small_training_set, layout, query, content))
    expected = keras_scores(model, tasks, small_training_set, query, content)
    assert found.shape == (batch, candidates, len(tasks))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_trained_rankers_keep_their_tasks_in_order(small_ranker, small_training_set, layout):
    query, content = drawn(small_training_set, 4, 6)
    graph = ranker_to_onnx(small_ranker.model, layout, small_ranker.tasks)
    [found] = session(graph).run(None, packed(small_training_set, layout, query, content))
    expected = keras_scores(small_ranker.model, small_ranker.tasks, small_training_set, query, content)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(small_ranker.tasks) == 4


def test_candidates_in_another_order_are_the_same_scores_in_that_order(ranker, small_training_set, layout):
    graph = session(ranker[2])
    query, content = drawn(small_training_set, 4, 15)
    order = np.random.default_rng(0).permutation(15)
    [straight] = graph.run(None, packed(small_training_set, layout, query, content))
    [turned] = graph.run(None, packed(small_training_set, layout, query, content[:, order]))
    np.testing.assert_allclose(turned, straight[:, order], atol=1e-6)
    assert straight.std(axis=1).min() > 1e-4


def test_a_query_is_embedded_once_for_all_its_candidates(ranker, small_training_set, layout):
    graph = onnx.ModelProto.FromString(ranker[2].SerializeToString())
    tables = {t.name for t in graph.graph.initializer if len(t.dims) == 2 and t.dims[1] == DIM}
    lookups = [n.output[0] for n in graph.graph.node if n.op_type == "Gather" and n.input[0] in tables]
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in lookups
    )
    batch, candidates = 2, 7
    query, content = drawn(small_training_set, batch, candidates)
    made = session(graph).run(lookups, packed(small_training_set, layout, query, content))
    shapes = sorted(array.shape for array in made)
    expected = [(batch, len(layout.query_ids), DIM)]
    expected += [(batch, layout.history_length, DIM)] * len(layout.query_lists)
    expected += [(batch * candidates, len(layout.content_ids), DIM)]
    assert shapes == sorted(expected)


def test_a_layout_names_every_column_once(small_training_set, layout):
    query, content = small_training_set.features.query, small_training_set.features.content
    assert sorted((*layout.query_ids, *layout.query_lists, *layout.query_numbers)) == sorted(query.arrays)
    assert sorted((*layout.content_ids, *layout.content_numbers)) == sorted(content.arrays)
    assert all(name.startswith("hist_") for name in layout.query_lists)
    assert layout.history_length == 10


def test_contents_are_packed_in_the_layouts_order(small_training_set, layout):
    arrays = small_training_set.features.content.arrays
    ids, numbers = layout.pack_contents(arrays)
    assert (ids.dtype, numbers.dtype) == (np.int64, np.float32)
    for place, name in enumerate(layout.content_ids):
        np.testing.assert_array_equal(ids[:, place], arrays[name])
    for place, name in enumerate(layout.content_numbers):
        np.testing.assert_array_equal(numbers[:, place], arrays[name])
    bare = Layout(layout.query_ids, (), (), layout.content_ids, (), 0)
    assert bare.pack_contents(arrays)[1].shape == (len(ids), 0)


def test_a_graph_takes_and_gives_what_its_signature_says(query_graph, ranker):
    names = {"query_vector", "query_ids", "query_lists", "query_numbers"}
    assert {output.name for output in query_graph.graph.output} == names
    assert [i.name for i in ranker[2].graph.input] == [
        "query_ids",
        "query_lists",
        "query_numbers",
        "content_ids",
        "content_numbers",
    ]
    assert [output.name for output in ranker[2].graph.output] == ["probabilities"]
    assert {entry.domain for entry in ranker[2].opset_import} == {""}
