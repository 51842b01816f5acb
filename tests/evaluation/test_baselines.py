"""The baselines against direct formulas on small matrices."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.baselines import EASE, Blended, GraphFilter, ItemKNN, Popularity
from evaluation.command import load_tables
from evaluation.protocols import benchmarks
from evaluation.systems import ValidationKnown


def random_matrix(seed: int, users: int = 40, items: int = 12) -> sp.csr_matrix:
    matrix = sp.random(users, items, 0.25, random_state=seed, format="csr", dtype=np.float32)
    matrix.data[:] = 1
    return matrix


def test_popularity_counts_the_users_of_each_market_alone():
    matrix = sp.csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float32))
    scores = Popularity(np.array([0, 0, 1])).fit(matrix).scores(np.array([2, 0]))
    assert scores.tolist() == [[0, 0, 1], [2, 1, 0]]


def test_popularity_of_one_group_is_the_column_sum():
    matrix = random_matrix(0)
    expected = np.asarray(matrix.sum(axis=0)).ravel()
    np.testing.assert_array_equal(Popularity().fit(matrix).scores(np.array([3]))[0], expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), regularisation=st.sampled_from([0.5, 10.0, 200.0]))
def test_ease_is_the_closed_form_of_its_paper(seed, regularisation):
    matrix = random_matrix(seed)
    dense = matrix.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + regularisation * np.eye(dense.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    users = np.array([5, 0, 7])
    for dtype in (np.float64, np.float32):
        scores = EASE(regularisation, dtype=dtype).fit(matrix).scores(users)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, dense[users] @ weights, atol=1e-4)


def test_ease_of_the_most_popular_items_is_ease_of_their_columns():
    matrix = random_matrix(1)
    popular = np.sort(np.argsort(-np.asarray(matrix.sum(axis=0)).ravel(), kind="stable")[:5])
    users = np.arange(40)
    part = EASE(3.0).fit(sp.csr_matrix(matrix[:, popular])).scores(users)
    scores = EASE(3.0, most_popular=5).fit(matrix).scores(users)
    np.testing.assert_array_equal(scores[:, popular], part)
    assert not np.delete(scores, popular, axis=1).any()


def test_ease_refuses_a_catalogue_that_it_cannot_invert():
    with pytest.raises(ValueError, match=r"EASE over 12 items .* pass most_popular=10"):
        EASE(1.0, max_items=10).fit(random_matrix(0))


def test_ease_refuses_a_matrix_without_regularisation():
    with pytest.raises(ValueError, match="regularisation must be positive, got 0"):
        EASE(0)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), neighbours=st.integers(1, 15), block=st.sampled_from([1, 5, 1024]))
def test_item_neighbours_sum_the_shrunk_cosines_of_the_nearest(seed, neighbours, block):
    matrix = random_matrix(seed)
    dense = matrix.toarray().astype(np.float64)
    norm = np.sqrt((dense**2).sum(axis=0))
    cosine = dense.T @ dense / (np.outer(norm, norm) + 7.0)
    np.fill_diagonal(cosine, 0)
    # Of tied neighbours any may be kept, so the test compares what is kept with the largest.
    model = ItemKNN(neighbours, shrinkage=7.0, block=block).fit(matrix)
    kept = model.similarity.T.toarray()
    nearest = -np.sort(-cosine, axis=1)[:, :neighbours]
    np.testing.assert_allclose(-np.sort(-kept, axis=1)[:, : nearest.shape[1]], nearest, atol=1e-6)
    np.testing.assert_allclose(kept, np.where(kept > 0, cosine, 0), atol=1e-6)
    np.testing.assert_allclose(model.scores(np.arange(40)), dense @ kept.T, atol=1e-5)


def test_item_neighbours_refuse_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="must be positive"):
        ItemKNN(shrinkage=0)


@pytest.mark.parametrize("rank", [3, 8])
def test_the_graph_filter_is_the_one_of_its_paper(rank):
    matrix = random_matrix(2)
    dense = matrix.toarray().astype(np.float64)
    user, item = dense.sum(axis=1), dense.sum(axis=0)
    normalised = dense / np.sqrt(np.maximum(user, 1))[:, None] / np.sqrt(item)
    _, _, vectors = np.linalg.svd(normalised)
    low = np.diag(item**-0.5) @ vectors[:rank].T @ vectors[:rank] @ np.diag(item**0.5)
    expected = dense @ (normalised.T @ normalised + 0.3 * low)
    scores = GraphFilter(rank).fit(matrix).scores(np.arange(40))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("dense", [[[1, 0, 1]], [[1], [1]], [[0, 0], [0, 0]]])
def test_the_graph_filter_of_one_user_one_item_or_nothing_is_the_linear_one(dense):
    matrix = sp.csr_matrix(np.array(dense, dtype=np.float32))
    users = np.arange(len(dense))
    scores = GraphFilter().fit(matrix).scores(users)
    user, item = (np.maximum(matrix.toarray().sum(axis=axis), 1) for axis in (1, 0))
    normalised = matrix.toarray() / np.sqrt(user)[:, None] / np.sqrt(item)
    np.testing.assert_allclose(scores, matrix.toarray() @ (normalised.T @ normalised), atol=1e-6)


def test_a_blend_adds_the_logarithm_of_the_popularity_of_the_market():
    matrix = random_matrix(4)
    groups = np.arange(40) % 2
    users = np.array([0, 1])
    counts = Popularity(groups).fit(matrix).scores(users)
    expected = EASE(5.0).fit(matrix).scores(users) + 0.1 * np.log1p(counts)
    blended = Blended(EASE(5.0), Popularity(groups), 0.1).fit(matrix)
    np.testing.assert_allclose(blended.scores(users), expected, atol=1e-6)


@pytest.mark.parametrize("build", [Popularity, lambda: EASE(2.0), ItemKNN, GraphFilter])
def test_items_and_users_without_interactions_get_finite_scores(build):
    matrix = random_matrix(3).tolil()
    matrix[:, 4] = 0
    matrix[6] = 0
    scores = build().fit(matrix.tocsr()).scores(np.arange(40))
    assert scores.shape == (40, 12)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_ease_that_knows_the_validation_rows_scores_from_them_and_does_not_list_them(small_world_dataset):
    task = benchmarks(load_tables("dataset", small_world_dataset.path))[0].task
    system = ValidationKnown("known", lambda task: EASE(10.0))
    system.fit(task, seed=0)
    train, wanted = task.matrix(), task.validation()
    assert not train.multiply(wanted).nnz
    users = np.flatnonzero(np.diff(wanted.indptr))[:20]
    scores = system.score(users)
    plain = EASE(10.0).fit(train)
    expected = (train + wanted)[users] @ plain.weights
    listed = ~wanted[users].toarray().astype(bool)
    np.testing.assert_allclose(scores[listed], np.asarray(expected)[listed], atol=1e-5)
    assert (scores[~listed] < scores[listed].min()).all()
    candidates = np.tile(np.arange(7), (len(users), 1))
    np.testing.assert_array_equal(system.score(users, candidates), scores[:, :7])
