"""Exported graphs: the numbers of Keras, for one query or many, one candidate or many."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from market.statistics import PAIR_FEATURES
from models.batches import TrainingSet
from models.export import Layout, content_tower_to_onnx, query_tower_to_onnx, ranker_to_onnx, rename, settle
from models.ranker import RankerConfig, build_ranker
from models.two_tower import TwoTowerConfig, build_two_tower, encode
from workflows.vectors import raw_vectors

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


PARTS = {"vectors": False, "attention": False, "experts": 0, "gates": False}
PLAIN = replace(RankerConfig(embedding_dim=DIM, bottom=(6,), top=(9, 5)), **PARTS)
WHOLE = replace(PLAIN, vectors=True, attention=True, experts=3, gates=True)
CONFIGS = {
    "plain": PLAIN,
    "vectors": replace(PLAIN, vectors=True),
    "attention": replace(PLAIN, attention=True),
    "whole": WHOLE,
}


@pytest.fixture(scope="module", params=product(CONFIGS, TASKS), ids=" with ".join)
def ranker(request, small_training_set, layout) -> tuple[Any, tuple[str, ...], onnx.ModelProto]:
    """A ranker whose weights are all drawn, and its graph; an order follows a click."""
    config, tasks = request.param
    model = drawn_ranker(small_training_set, CONFIGS[config], TASKS[tasks])
    return model, TASKS[tasks], ranker_to_onnx(model, layout, TASKS[tasks])


def drawn_ranker(data: TrainingSet, config: RankerConfig, tasks: tuple[str, ...]) -> Any:
    model = build_ranker(data.features, tasks, config, seed=1, follows=(-1, 0)[: len(tasks)])
    keras_scores(model, tasks, data, np.array([0]), np.array([[0]]))  # builds it
    random = np.random.default_rng(2)
    model.set_weights([random.normal(scale=0.5, size=w.shape) for w in model.get_weights()])
    return model


def keras_scores(model, tasks, data: TrainingSet, query: np.ndarray, content: np.ndarray) -> np.ndarray:
    """The model's own predictions for every (query, candidate), one row each: float32[B, C, T]."""
    flat_query, flat = np.repeat(query, content.shape[1]), content.ravel()
    x = data.query_arrays(flat_query) | data.content_arrays(flat) | data.history_rows(flat_query)
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
        "candidates": content,
        "recent": data.examples.queries.history[query].astype(np.int64),
    }


def scored(graph: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities from those of the inputs that the graph takes."""
    loaded = session(graph)
    return loaded.run(None, {value.name: inputs[value.name] for value in loaded.get_inputs()})[0]


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


def test_a_gated_query_tower_gives_keras_vectors(small_training_set, layout):
    features = small_training_set.features
    config = TwoTowerConfig(dim=DIM, embedding_dim=DIM, hidden=(6,), gates=True)
    model = build_two_tower(features.query.schema, features.content.schema, config, seed=1)
    rows = np.arange(50)
    encode(model.query_encoder, small_training_set.query_arrays(rows))  # builds it
    random = np.random.default_rng(2)
    model.query_encoder.set_weights(
        [random.normal(scale=0.5, size=w.shape) for w in model.query_encoder.get_weights()]
    )
    graph = session(query_tower_to_onnx(model, features.query.schema, layout))
    [found] = graph.run(["query_vector"], {name: a[rows] for name, a in features.query.arrays.items()})
    expected = encode(model.query_encoder, small_training_set.query_arrays(rows))
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_content_tower_gives_keras_vectors(small_two_tower, small_training_set, layout):
    features = small_training_set.features.content
    spaces = small_training_set.features.spaces
    graph = session(content_tower_to_onnx(small_two_tower.model, features.schema, layout, spaces))
    raw = raw_vectors(small_training_set.examples.contents, "v_image")
    columns = {**features.arrays, "v_image": raw}
    for rows in (np.array([7]), np.arange(len(features))):
        [found] = graph.run(["content_vector"], {name: a[rows] for name, a in columns.items()})
        expected = encode(small_two_tower.model.candidate_encoder, small_training_set.content_arrays(rows))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    without = {name: a[:2] for name, a in columns.items()} | {"v_image": np.full_like(raw[:2], np.nan)}
    average = small_training_set.content_arrays(np.arange(2))
    average["v_image"] = np.zeros_like(average["v_image"])
    [found] = graph.run(["content_vector"], without)
    expected = encode(small_two_tower.model.candidate_encoder, average)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("candidates", [1, 20])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_ranker_gives_keras_probabilities(batch, candidates, ranker, small_training_set, layout):
    model, tasks, graph = ranker
    query, content = drawn(small_training_set, batch, candidates)
    found = scored(graph, packed(small_training_set, layout, query, content))
    expected = keras_scores(model, tasks, small_training_set, query, content)
    assert found.shape == (batch, candidates, len(tasks))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_trained_rankers_keep_their_tasks_in_order(small_ranker, small_training_set, layout):
    query, content = drawn(small_training_set, 4, 6)
    graph = ranker_to_onnx(small_ranker.model, layout, small_ranker.tasks)
    found = scored(graph, packed(small_training_set, layout, query, content))
    expected = keras_scores(small_ranker.model, small_ranker.tasks, small_training_set, query, content)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(small_ranker.tasks) == 4


def test_candidates_in_another_order_are_the_same_scores_in_that_order(ranker, small_training_set, layout):
    query, content = drawn(small_training_set, 4, 15)
    order = np.random.default_rng(0).permutation(15)
    straight = scored(ranker[2], packed(small_training_set, layout, query, content))
    turned = scored(ranker[2], packed(small_training_set, layout, query, content[:, order]))
    np.testing.assert_allclose(turned, straight[:, order], atol=1e-6)
    assert straight.std(axis=1).min() > 1e-4


def test_places_without_a_candidate_and_histories_without_an_end_are_nobody(small_training_set, layout):
    """A place that is not filled changes no other, and what pads a history is no content."""
    graph = ranker_to_onnx(
        drawn_ranker(small_training_set, WHOLE, TASKS["two tasks"]), layout, TASKS["two tasks"]
    )
    query, content = drawn(small_training_set, 3, 6)
    inputs = packed(small_training_set, layout, query, content)
    inputs["recent"] = np.where(np.arange(layout.history_length) < 4, np.abs(inputs["recent"]), -1)
    straight = scored(graph, inputs)
    gaps = inputs | {"candidates": np.where(np.arange(6) == 2, -1, content)}
    found = scored(graph, gaps)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(np.delete(found, 2, axis=1), np.delete(straight, 2, axis=1))
    turned = inputs | {"recent": inputs["recent"][:, ::-1]}
    np.testing.assert_allclose(scored(graph, turned), straight, atol=1e-6)
    other = inputs | {"recent": (inputs["recent"] >= 0) - 1}
    assert np.abs(scored(graph, other) - straight).max() > 1e-4


def test_a_query_is_embedded_once_for_all_its_candidates(ranker, small_training_set, layout):
    graph = onnx.ModelProto.FromString(ranker[2].SerializeToString())
    tables = {t.name for t in graph.graph.initializer if len(t.dims) == 2 and t.dims[1] == DIM}
    lookups = [n.output[0] for n in graph.graph.node if n.op_type == "Gather" and n.input[0] in tables]
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in lookups
    )
    batch, candidates = 2, 7
    query, content = drawn(small_training_set, batch, candidates)
    loaded, inputs = session(graph), packed(small_training_set, layout, query, content)
    taken = {value.name for value in loaded.get_inputs()}
    made = loaded.run(lookups, {name: inputs[name] for name in taken})
    shapes = sorted(array.shape for array in made)
    expected = [(batch, len(layout.query_ids), DIM)]
    expected += [(batch, len(layout.query_lists), layout.history_length, DIM)]
    expected += [(batch * candidates, len(layout.content_ids), DIM)]
    expected += [(batch, candidates, DIM)] * ("candidates" in taken)
    expected += [(batch, layout.history_length, DIM)] * ("recent" in taken)
    assert shapes == sorted(expected)


def test_a_layout_names_every_column_once(small_training_set, layout):
    query, content = small_training_set.features.query, small_training_set.features.content
    assert sorted((*layout.query_ids, *layout.query_lists, *layout.query_numbers)) == sorted(query.arrays)
    assert sorted((*layout.content_ids, *layout.content_numbers, "v_image")) == sorted(content.arrays)
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
        *(["candidates"] if ranker[0].blocks[0].items else []),
        *(["recent"] if ranker[0].blocks[0].attention else []),
    ]
    made = [output.name for output in ranker[2].graph.output]
    assert made == ["probabilities", "kind", "price_local"]
    assert {entry.domain for entry in ranker[2].opset_import} == {""}


def test_a_model_makes_the_same_bytes_each_time(small_two_tower, small_training_set, layout, query_graph):
    schema = small_training_set.features.query.schema
    again = query_tower_to_onnx(small_two_tower.model, schema, layout)
    assert again.SerializeToString() == query_graph.SerializeToString()


def test_how_a_graph_was_come_by_leaves_no_trace(ranker):
    settled = onnx.ModelProto.FromString(ranker[2].SerializeToString())
    settle(settled.graph)
    scrambled = onnx.ModelProto.FromString(ranker[2].SerializeToString())
    graph, rng = scrambled.graph, np.random.default_rng(0)
    ends = {value.name for value in (*graph.input, *graph.output)}
    tensors = [*(c.name for c in graph.initializer), *(name for node in graph.node for name in node.output)]
    free = [name for name in tensors if name and name not in ends]
    rename(scrambled, {name: f"t{place}" for name, place in zip(free, rng.permutation(len(free)))})
    for parts in (graph.node, graph.initializer):
        mixed = [parts[place] for place in rng.permutation(len(parts))]
        copies = [type(part).FromString(part.SerializeToString()) for part in mixed]
        del parts[:]
        parts.extend(copies)
    settle(graph)
    assert scrambled.SerializeToString(deterministic=True) == settled.SerializeToString(deterministic=True)
