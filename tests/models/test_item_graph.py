"""The item graph is EASE's, and a training pair is scored as if its user had never been there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.baselines import EASE
from models import item_graph
from models.item_graph import (
    BlendedGraph,
    CoVisitation,
    Ease,
    InteractionMatrix,
    ItemGraphConfig,
    fit_item_graph,
    fit_market_graphs,
    invert,
    likeness,
    training_events,
)
from workflows.examples import TRAIN


def matrix_of(seed, users=30, contents=14, share=0.2):
    random = np.random.default_rng(seed)
    return sp.csr_matrix((random.random((users, contents)) < share).astype(np.float32))


def dense(graph):
    made = np.zeros((len(graph.neighbours),) * 2, np.float32)
    rows, places = np.nonzero(graph.neighbours >= 0)
    made[rows, graph.neighbours[rows, places]] = graph.weights[rows, places]
    return made


def test_edges_are_the_largest_positive_weights_of_ease():
    matrix = matrix_of(1)
    graph = Ease(matrix, None, ItemGraphConfig(neighbours=5, regularisation=3.0)).graph
    weights = np.maximum(EASE(3.0).fit(matrix).weights, 0)
    kept = np.sort(weights, axis=1)[:, -5:].min(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(graph), np.where(weights >= kept, weights, 0), atol=1e-6)


@pytest.mark.parametrize("size", [5, 256, 300])
def test_the_inverse_is_whole_whatever_blocks_it_is_mirrored_in(size):
    rows = np.random.default_rng(size).normal(size=(size, size))
    gram = rows @ rows.T + size * np.eye(size)
    inverse = invert(gram.copy())
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_allclose(inverse @ gram, np.eye(size), atol=1e-9)


def test_co_visitation_adds_to_the_edges_of_ease():
    events = events_of(2, timed=True)
    config = ItemGraphConfig(neighbours=14, regularisation=3.0, co_visitation=0.5)
    visits = CoVisitation(events, config)
    whole = BlendedGraph(Ease(events.matrix, None, config), np.arange(14), visits, config).graph
    weights = np.maximum(EASE(3.0).fit(events.matrix).weights, 0) + 0.5 * filtered(events)
    np.testing.assert_allclose(dense(whole), weights, atol=1e-5)
    some = np.array([1, 4, 5, 9])
    part = BlendedGraph(Ease(events.matrix[:, some], None, config), some, visits, config).graph
    weights = 0.5 * filtered(events)
    weights[np.ix_(some, some)] += np.maximum(EASE(3.0).fit(events.matrix[:, some]).weights, 0)
    np.testing.assert_allclose(dense(part), weights, atol=1e-5)


def events_of(seed, timed):
    matrix = matrix_of(seed)
    return InteractionMatrix(
        matrix, np.random.default_rng(seed).uniform(0, 900, matrix.nnz) if timed else None
    )


def without(events, user):
    """The events of all others."""
    kept = np.repeat(np.arange(events.matrix.shape[0]) != user, np.diff(events.matrix.indptr))
    rows, columns = (part[kept] for part in events.matrix.nonzero())
    others = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=events.matrix.shape)
    return InteractionMatrix(others, None if events.day is None else events.day[kept])


def filtered(events, days=180.0):
    """The linear filter of events by its definition, 0 on the diagonal."""
    wanted = events.matrix.toarray().astype(np.float64)
    users, contents = np.maximum(wanted.sum(axis=1), 1), np.maximum(wanted.sum(axis=0), 1)
    day = np.zeros(wanted.shape)
    if events.day is not None:
        day[events.matrix.nonzero()] = events.day
    near = np.exp(-np.abs(day[:, :, None] - day[:, None, :]) / days)
    weights = np.einsum("ui,uj,u,uij->ij", wanted, wanted, users**-0.6, near)
    weights = weights / contents[:, None] ** 0.7 / contents**0.3
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("rows", [4, 4096])
@pytest.mark.parametrize("timed", [False, True])
def test_edges_of_co_visitation_are_the_largest_of_the_linear_filter(timed, rows, monkeypatch):
    monkeypatch.setattr(item_graph, "ROWS", rows)
    events = events_of(1, timed)
    graph = CoVisitation(events, ItemGraphConfig(neighbours=14)).graph
    np.testing.assert_allclose(dense(graph), filtered(events), atol=1e-6)
    few = CoVisitation(events, ItemGraphConfig(neighbours=5)).graph
    np.testing.assert_array_equal(few.weights, graph.weights[:, :5])
    assert (np.diff(graph.weights, axis=1) <= 0).all()


KINDS = ("ease", "visits", "both", "both, some")


@given(st.integers(0, 50), st.integers(1, 13), st.booleans(), st.sampled_from(KINDS))
@settings(max_examples=60)
def test_leaving_a_user_out_equals_a_fit_without_the_user(seed, neighbours, timed, kind):
    events = events_of(seed, timed)
    matrix, contents = events.matrix, events.matrix.shape[1]
    config = ItemGraphConfig(neighbours=neighbours, regularisation=2.0, co_visitation=0.5, recency=0.4)

    some = np.arange(0, contents, 2 if kind == "both, some" else 1)

    def weights_of(events):
        weights = np.zeros((contents, contents))
        if kind != "visits":
            weights[np.ix_(some, some)] = np.maximum(EASE(2.0).fit(events.matrix[:, some]).weights, 0)
        return weights + (0 if kind == "ease" else 1 if kind == "visits" else 0.5) * filtered(events)

    ease, visits = Ease(matrix[:, some], None, config), CoVisitation(events, config)
    fitted = {"ease": ease, "visits": visits}.get(kind, BlendedGraph(ease, some, visits, config))
    edges = dense(fitted.graph) > 0
    for user in np.flatnonzero(np.diff(matrix.indptr) >= 2)[:6]:
        past = matrix[user].indices[:3]
        history = np.full((contents, 4), -1)
        history[:, : len(past)] = past
        others = np.where(edges, weights_of(without(events, user)), 0)[past]
        made = fitted.without_user(np.full(contents, user), history, np.arange(contents))
        before = np.arange(len(past))[::-1, None]
        np.testing.assert_allclose(made, (others * (1 + before) ** -0.4).sum(axis=0), atol=1e-5)


def test_a_history_older_than_a_users_row_is_told_without_the_user_too():
    """Rows hold the latest events alone, and an early training query's history lies before them."""
    events = events_of(3, timed=False)
    config = ItemGraphConfig(neighbours=13, regularisation=3.0)
    known = Ease(events.matrix, None, config)
    user = np.repeat(np.arange(events.matrix.shape[0]), 14)
    content = np.tile(np.arange(14), events.matrix.shape[0])
    past = np.stack([(content + 1) % 14, (content + 5) % 14], axis=1)
    row = events.matrix.toarray()
    assert (row[user[:, None], past] == 0).any()
    found = known.without_user(user, past, content)
    for one in range(events.matrix.shape[0]):
        here = user == one
        # Edges that the graph has, by a fit without the user.
        weights = np.maximum(EASE(3.0).fit(without(events, one).matrix).weights, 0) * (dense(known.graph) > 0)
        expected = weights[past[here], content[here, None]].sum(axis=1)
        np.testing.assert_allclose(found[here], expected, atol=1e-4)


def test_a_large_catalogue_gets_co_visitation(small_examples):
    contents = len(small_examples.contents)
    assert isinstance(fit_item_graph(small_examples, ItemGraphConfig(items=contents)), Ease)
    few = ItemGraphConfig(items=contents - 1)
    assert isinstance(fit_item_graph(small_examples, few), CoVisitation)
    popular = fit_item_graph(small_examples, replace(few, popular=7, co_visitation=1.0))
    assert isinstance(popular, BlendedGraph)
    assert len(popular.chosen) == 7
    assert popular.visits.wanted[popular.chosen].min() >= np.sort(popular.visits.wanted)[-7]


@given(st.integers(0, 50), st.sampled_from([0.0, 0.4]))
@settings(max_examples=20)
def test_what_is_reached_is_what_stands_between(seed, recency):
    config = ItemGraphConfig(neighbours=4, regularisation=2.0, recency=recency)
    graph = Ease(matrix_of(seed), None, config).graph
    random = np.random.default_rng(seed)
    events = random.integers(0, 6, (9, 1))
    history = np.where(np.arange(5) < events, random.integers(0, 14, (9, 5)), -1)
    spread = graph.reach(history).at(np.tile(np.arange(14), (9, 1)))
    counts = (1.0 + np.maximum(events - 1 - np.arange(5), 0)) ** -recency
    edges = np.where(history >= 0, counts, 0)[..., None] * dense(graph)[history]
    np.testing.assert_allclose(spread, edges.sum(axis=1), atol=1e-6)
    for content in range(14):
        between = graph.between(history, np.full(9, content))
        np.testing.assert_allclose(between, spread[:, content], atol=1e-6)


def test_only_training_pairs_leave_their_user_out(small_training_set):
    examples, graph = small_training_set.examples, small_training_set.graph
    pairs = np.flatnonzero(examples.pairs.positive & (examples.pairs.split == TRAIN))[:500]
    query, content = examples.pairs.query[pairs], examples.pairs.content[pairs]
    user, history = examples.queries.user[query], examples.queries.history[query]
    train, served = (
        graph.affinity(user, history, content, np.full(len(pairs), known)) for known in (True, False)
    )
    np.testing.assert_allclose(served, graph.graph.between(history, content))
    assert train.sum() < served.sum()


def test_held_out_pairs_do_not_touch_the_graph(small_examples):
    pairs = small_examples.pairs
    turned = np.where(pairs.split == TRAIN, pairs.positive, ~pairs.positive)
    first, second = (
        fit_item_graph(examples, ItemGraphConfig()).graph
        for examples in (small_examples, replace(small_examples, pairs=replace(pairs, positive=turned)))
    )
    np.testing.assert_array_equal(first.weights, second.weights)


def test_a_markets_own_graph_is_ease_of_its_own_people_and_contents(small_examples):
    config = ItemGraphConfig(neighbours=200, market_regularisation=3.0, recency=0.4)
    made, matrix = fit_market_graphs(small_examples, config), training_events(small_examples, 200).matrix
    random, found = np.random.default_rng(0), 0
    for market, code in enumerate(small_examples.markets):
        sold = np.flatnonzero(small_examples.available[market])
        people = (small_examples.users["market"] == code).to_numpy()
        weights = np.maximum(EASE(3.0).fit(matrix[people][:, sold]).weights, 0)
        kept = np.sort(weights, axis=1)[:, -200:].min(axis=1, keepdims=True)
        weights = np.where(weights >= kept, weights, 0)
        places = random.integers(0, len(sold), (4, 3))
        every = np.arange(len(small_examples.contents))
        said = made.affinity(np.full(4, market), sold[places], np.tile(every, (4, 1)))
        counts = (1.0 + np.arange(3)[::-1]) ** -0.4
        np.testing.assert_allclose(said[:, sold], (weights[places] * counts[:, None]).sum(axis=1), atol=1e-5)
        assert not said[:, ~small_examples.available[market]].any()
        found += (said > 0).sum()
    assert found
    assert not made.affinity(np.array([0]), np.array([[-1, -1]]), np.array([[3, -1]])).any()


def test_markets_have_no_graphs_of_their_own_unless_asked_or_where_they_are_too_large(small_examples):
    sizes = small_examples.available.sum(axis=1)
    sold = np.flatnonzero(small_examples.available[0])[None]
    none = fit_market_graphs(small_examples, ItemGraphConfig())
    few = ItemGraphConfig(market_regularisation=3.0, items=int(sizes.min()))
    some = fit_market_graphs(small_examples, few)
    assert not none.affinity(np.array([0]), sold, sold).any()
    assert ((some.place >= 0).any(axis=1) == (sizes == sizes.min())).all()


def test_only_the_latest_events_of_a_user_count(small_examples):
    queries, pairs = small_examples.queries, small_examples.pairs
    events = training_events(small_examples, 3)
    matrix = events.matrix
    user = int(np.argmax(np.bincount(queries.user[pairs.query[pairs.positive & (pairs.split == TRAIN)]])))
    own = np.flatnonzero(pairs.positive & (pairs.split == TRAIN) & (queries.user[pairs.query] == user))
    own = own[np.argsort(queries.time[pairs.query[own]], kind="stable")][-3:]
    assert len(own) == 3
    assert set(matrix[user].indices) == set(pairs.content[own].tolist())
    mine = slice(*matrix.indptr[user : user + 2])
    times = dict(zip(matrix.indices[mine], events.day[mine] * 86400.0))
    assert times == pytest.approx(
        {pairs.content[place]: queries.time[pairs.query[place]] for place in own}, abs=1.0
    )


def test_contents_of_like_vectors_are_neighbours_without_any_event():
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    vectors[5] = vectors[2]
    contents = pd.DataFrame({"v_image": [*vectors[:4], None, vectors[5]]})
    alike = likeness(contents)
    assert alike[4].tolist() == [0] * 6
    assert alike[5, 2] == pytest.approx(1, abs=1e-5)
    events = sp.csr_matrix(np.eye(6, dtype=np.float32)[:5])
    graph = Ease(events, alike, ItemGraphConfig(neighbours=3, regularisation=2.0)).graph
    assert graph.neighbours[5, graph.weights[5].argmax()] == 2
    assert not Ease(events, None, ItemGraphConfig(neighbours=3, regularisation=2.0)).graph.weights.any()


@pytest.mark.parametrize("knobs", [{"low_rank": -1}, {"exponents": (1.0, 0.5)}])
def test_bad_knobs_are_refused_by_name(knobs):
    with pytest.raises(ValueError, match=f"item_graph.{next(iter(knobs))}"):
        ItemGraphConfig(**knobs)
