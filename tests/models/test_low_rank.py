"""The low-rank table is BSPM's filter without its linear part, and says the same in every batch."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from market.item_graph import LowRank
from models.item_graph import ItemGraphConfig
from models.low_rank import LOW_PASS, TIME, compressed, filter_rest, fit_low_rank
from workflows.examples import VALID


def log_of(seed: int, users: int = 40, contents: int = 12) -> sp.csr_matrix:
    wanted = np.random.default_rng(seed).random((users, contents)) < 0.3
    wanted[0] = True  # every content once at least
    return sp.csr_matrix(wanted.astype(np.float32))


def whole_filter(log: sp.csr_matrix, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """BSPM's filter and its linear part by their definitions, float64[N, N]."""
    wanted = log.toarray().astype(np.float64)
    degree = wanted.sum(axis=0)
    normalised = wanted / np.sqrt(np.maximum(wanted.sum(axis=1, keepdims=True), 1)) / np.sqrt(degree)
    linear = normalised.T @ normalised
    first = np.linalg.eigh(linear)[1][:, ::-1][:, :rank]
    made = linear + LOW_PASS * np.diag(degree**-0.5) @ first @ first.T @ np.diag(degree**0.5)
    # Runge and Kutta's step as they say it.
    one = -made @ linear
    two = -(made + TIME / 2 * one) @ linear
    three = -(made + TIME / 2 * two) @ linear
    four = -(made + TIME * three) @ linear
    return made + TIME / 6 * (one + 2 * two + 2 * three + four), linear


@pytest.mark.parametrize("seed", range(4))
def test_with_all_dimensions_it_is_the_rest_of_the_filter(seed):
    log = log_of(seed)
    source, target = filter_rest(log, log.shape[1])
    whole, linear = whole_filter(log, log.shape[1])
    np.testing.assert_allclose(linear + source @ target.T, whole, atol=1e-4)


def test_a_log_of_few_tastes_needs_as_many_dimensions():
    tastes = np.kron(np.eye(3), np.ones((1, 5)))
    log = sp.csr_matrix(np.repeat(tastes, [4, 9, 2], axis=0).astype(np.float32))
    source, target = filter_rest(log, 3)
    assert source.shape == target.shape == (15, 3)
    whole, linear = whole_filter(log, 3)
    np.testing.assert_allclose(linear + source @ target.T, whole, atol=1e-5)


@given(st.integers(0, 1000), st.integers(1, 9))
@settings(max_examples=20)
def test_a_product_of_lower_rank_is_the_closest(seed, rank):
    random = np.random.default_rng(seed)
    left, right = random.normal(size=(2, 20, 9))
    closest = np.linalg.svd(left @ right.T)
    expected = closest[0][:, :rank] * closest[1][:rank] @ closest[2][:rank]
    made = compressed(left, right, rank)
    np.testing.assert_allclose(made[0] @ made[1].T, expected, atol=1e-8)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.35]))
@settings(max_examples=30)
def test_affinities_are_sums_over_the_history_one_by_one(seed, recency):
    random = np.random.default_rng(seed)
    source, target = random.normal(size=(2, 15, 4)).astype(np.float32)
    low_rank = LowRank(source, target, recency)
    history, content = random.integers(-1, 15, (5, 6)), random.integers(-1, 15, (5, 7))
    made = low_rank.affinity(history, content)
    for row, (past, here) in enumerate(zip(history, content)):
        past = past[past >= 0][::-1]
        for place, one in enumerate(here):
            edges = [(1 + n) ** -recency * (source[j] @ target[one]) for n, j in enumerate(past)]
            assert made[row, place] == pytest.approx(sum(edges) if one >= 0 else 0, abs=1e-4)
    alone = [low_rank.affinity(history[[row]], content[[row]])[0] for row in range(5)]
    np.testing.assert_array_equal(made, alone)


def test_without_dimensions_it_says_nothing():
    assert not LowRank.none(9).affinity(np.array([[1, 2, -1]]), np.array([[3, -1]])).any()


def test_it_knows_the_parts_that_it_is_told_of(small_examples):
    none = fit_low_rank(small_examples, ItemGraphConfig())
    assert none.source.shape == (len(small_examples.contents), 0)
    config = ItemGraphConfig(low_rank=6, recency=0.3)
    some, more = (fit_low_rank(small_examples, config, *last) for last in ((), (VALID,)))
    assert some.source.shape == some.target.shape == (len(small_examples.contents), 6)
    assert some.recency == (0.3 if small_examples.has_time else 0.0)
    assert not np.allclose(some.source @ some.target.T, more.source @ more.target.T)
    again = fit_low_rank(small_examples, config)
    np.testing.assert_array_equal(some.source, again.source)
