"""Search among a market's contents: exact, or approximate with a recall that was checked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble import search
from ensemble.channels.two_tower import two_tower
from ensemble.release import Release, ReleaseError, ReleaseWriter
from ensemble.search import (
    EXACT_UP_TO,
    LEAST_QUERIES,
    MarketIndex,
    Tuning,
    _fewest,
    _Sample,
    read_index,
    shares,
    write_indexes,
)
from tests.ensemble.channels.asking import asked as ask
from tests.ensemble.channels.asking import shelf

WIDTH, K = 16, 50


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, seed: int, queries: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Contents around 40 topics and queries that lean to one of them."""
    random = np.random.default_rng(seed)
    topics = random.standard_normal((40, WIDTH))
    near = topics[random.integers(0, 40, count)] + 0.7 * random.standard_normal((count, WIDTH))
    lean = topics[random.integers(0, 40, queries)] + random.standard_normal((queries, WIDTH))
    return unit(near), unit(lean)


def by_brute_force(
    vectors: np.ndarray, queries: np.ndarray, k: int, eligible: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ vectors.T
    if eligible is not None:
        scores = np.where(eligible, scores, -np.inf)
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, places, axis=1)
    return np.where(np.isfinite(best), places, -1), best


@pytest.fixture(scope="module")
def large() -> tuple[MarketIndex, np.ndarray]:
    """An approximate index, and queries that it was not tuned with."""
    vectors, queries = clustered(12_000, 1, 3900)
    index = MarketIndex.build(vectors, queries[:900], k=K, recall=0.98)
    assert index.tuning is not None
    return index, queries[900:]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    contents=st.integers(0, 60),
    queries=st.integers(1, 40),
    k=st.integers(1, 70),
    filtered=st.booleans(),
)
def test_exact_search_is_brute_force_with_equal_scores_by_place(
    seed: int, contents: int, queries: int, k: int, filtered: bool
) -> None:
    random = np.random.default_rng(seed)
    # Small whole numbers: products are exact and often equal.
    vectors = random.integers(-1, 2, (contents, 3)).astype(np.float32)
    asked = random.integers(-1, 2, (queries, 3)).astype(np.float32)
    eligible = random.random((queries, contents)) < random.random((queries, 1)) if filtered else None
    index = MarketIndex.build(vectors, asked, k=k)
    places = index.exact(asked, k, eligible)
    expected, best = by_brute_force(vectors, asked, k, eligible)
    assert places.dtype == np.int64
    np.testing.assert_array_equal(places, expected)
    scores = index.products(asked, places)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, best)


def test_a_small_market_is_searched_exactly() -> None:
    vectors, queries = clustered(EXACT_UP_TO, 2, 300)
    index = MarketIndex.build(vectors, queries, k=K)
    assert index.tuning is None
    np.testing.assert_array_equal(index.search(queries, K), index.exact(queries, K))


def test_a_large_market_is_searched_approximately_with_the_recall_asked_for(
    large: tuple[MarketIndex, np.ndarray],
) -> None:
    index, queries = large
    places = index.search(queries, K)
    recall = shares(places, by_brute_force(index.vectors, queries, K)[0]).mean()
    assert 0.98 <= recall < 1
    assert 0.98 <= index.tuning.recall < 1
    assert index.tuning.probes < 64
    scores = index.products(queries, places)
    np.testing.assert_allclose(scores, np.einsum("bkd,bd->bk", index.vectors[places], queries), rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_scan_list_by_list_finds_what_one_query_by_query_finds(
    large: tuple[MarketIndex, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, queries = large
    monkeypatch.setattr("ensemble.search._CODES_A_QUERY", 0)
    index = MarketIndex.load(built.vectors, built.lists(), built.tuning)
    assert index._scan is not None
    scans = []
    for queries_a_list, scan in ((0, "_LIST_BY_LIST"), (np.inf, "_QUERY_BY_QUERY")):
        monkeypatch.setattr("ensemble.search._QUERIES_A_LIST", queries_a_list)
        scans.append([index.search(queries[at : at + size], K) for at, size in ((0, 1), (1, 2), (3, 997))])
        assert index._scan.lists.implem == getattr(search, scan)
    for lists, alone in zip(*scans):
        np.testing.assert_array_equal(lists, alone)


def test_many_equal_contents_at_the_border_are_searched_exactly() -> None:
    vectors, queries = clustered(12_000, 6, 400)
    vectors[4_000:] = vectors[4_000]  # more of them than are scored anew
    index = MarketIndex.build(vectors, queries[:300], k=K, recall=0.9)
    assert index.tuning is not None
    asked = np.concatenate([vectors[4_000:4_001], queries[300:]])
    places = index.search(asked, K)
    np.testing.assert_array_equal(places[:1], index.exact(asked[:1], K))
    np.testing.assert_array_equal(places[0], np.arange(4_000, 4_000 + K))


def test_vectors_without_clusters_get_fewer_lists() -> None:
    flat = unit(np.random.default_rng(3).standard_normal((12_400, 3 * WIDTH)))
    tight, queries = clustered(12_000, 1, 400)
    few = MarketIndex.build(flat[:-400], flat[-400:], k=K, recall=0.95)
    many = MarketIndex.build(tight, queries, k=K, recall=0.95)
    assert few._scan is not None
    assert many._scan is not None
    assert few._scan.lists.nlist < many._scan.lists.nlist


@pytest.mark.parametrize("k", [K, K + 1])
def test_a_batch_finds_what_each_query_finds_alone(large: tuple[MarketIndex, np.ndarray], k: int) -> None:
    index, queries = large
    queries = queries[:70]
    places, one_by_one = index.search(queries, k), np.split(queries, len(queries))
    alone = [index.search(query, k) for query in one_by_one]
    np.testing.assert_array_equal(places, np.concatenate(alone))
    for made, each in (
        (index.products(queries, places), map(index.products, one_by_one, alone)),
        (index.scores(queries), map(index.scores, one_by_one)),
    ):
        np.testing.assert_array_equal(made, np.concatenate(list(each)))


def test_more_results_than_it_was_tuned_for_are_searched_exactly(
    large: tuple[MarketIndex, np.ndarray],
) -> None:
    index, queries = large
    places = index.search(queries, 4 * K)
    assert shares(places, by_brute_force(index.vectors, queries, 4 * K)[0]).mean() > 0.9999


def test_lists_that_hold_too_few_contents_are_made_up_for_by_an_exact_search(
    large: tuple[MarketIndex, np.ndarray],
) -> None:
    index, queries = large
    narrow = MarketIndex.load(index.vectors, index.lists(), Tuning(500, 1, 2.0, 0.0))
    places = narrow.search(queries, 500)
    assert (places >= 0).all()
    assert len(np.unique(places[0])) == 500
    assert np.isfinite(narrow.products(queries, places)).all()


def test_an_index_read_from_its_lists_is_the_one_that_was_built(
    large: tuple[MarketIndex, np.ndarray],
) -> None:
    index, queries = large
    vectors, sample = clustered(12_000, 1, 3900)
    again = MarketIndex.build(vectors, sample[:900], k=K, recall=0.98)
    assert again.tuning == index.tuning
    np.testing.assert_array_equal(again.lists(), index.lists())
    read = MarketIndex.load(vectors, index.lists(), index.tuning)
    np.testing.assert_array_equal(index.search(queries, K), read.search(queries, K))


def test_an_index_that_cannot_reach_its_recall_searches_exactly() -> None:
    # Without any clusters the nearest are spread over all lists.
    vectors = unit(np.random.default_rng(3).standard_normal((EXACT_UP_TO + 301, WIDTH)))
    vectors, queries = vectors[:-300], vectors[-300:]
    assert MarketIndex.build(vectors, queries, k=K, recall=0.9).tuning is not None
    assert MarketIndex.build(vectors, queries, k=K, recall=1.0).tuning is None


@pytest.mark.parametrize(("queries", "reached"), [(100, False), (400, True)])
def test_a_recall_is_reached_where_its_mean_lies_above_by_two_standard_errors(
    queries: int, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the queries find 0.82, half all of what is nearest: 0.91, give or take 0.009 of 100 queries."""
    truth = np.tile(np.arange(K), (queries, 1))
    found = np.where((np.arange(queries)[:, None] % 2 == 0) & (truth < 9), -1, truth)
    monkeypatch.setattr(search, "_proposed", lambda *_: (found, None, None))
    sample = _Sample(np.zeros((queries, WIDTH), np.float32), truth, 0.9)
    tuning = _fewest(SimpleNamespace(nlist=8, ntotal=100), sample, 1.5, 1, 8)
    assert (tuning is not None) == reached
    if tuning:
        assert (tuning.probes, tuning.recall) == (1, pytest.approx(0.91))


def test_too_few_queries_are_no_evidence_and_lead_to_exact_search() -> None:
    vectors, queries = clustered(EXACT_UP_TO + 1, 3, 300)
    assert MarketIndex.build(vectors, queries[: LEAST_QUERIES - 1], k=K, recall=0.9).tuning is None
    assert MarketIndex.build(vectors, queries, k=K, recall=0.9).tuning is not None


def test_lists_of_other_vectors_or_none_at_all_are_refused(large: tuple[MarketIndex, np.ndarray]) -> None:
    index, _ = large
    with pytest.raises(ValueError, match=r"12000 x 16.*11999 x 16; build the release again"):
        MarketIndex.load(index.vectors[1:], index.lists(), index.tuning)
    with pytest.raises(ValueError, match="cannot be read"):
        MarketIndex.load(index.vectors, index.lists()[:200], index.tuning)


def test_a_release_holds_the_index_of_every_market(
    large: tuple[MarketIndex, np.ndarray], tmp_path: Path
) -> None:
    index, queries = large
    small = MarketIndex.build(index.vectors[:30], queries, k=K)
    with ReleaseWriter(tmp_path / "release", name="two markets") as writer:
        write_indexes(writer, [small, index])
    release = Release.open(tmp_path / "release")
    assert release.files == ("search.json", "search_1.npy")
    for market, made in enumerate((small, index)):
        read = read_index(release, market, made.vectors)
        assert read.tuning == made.tuning
        np.testing.assert_array_equal(made.search(queries, K), read.search(queries, K))
    with pytest.raises(ReleaseError, match=r"search_1\.npy of release 'two markets'.*build the release"):
        read_index(release, 1, index.vectors[:-1])


def test_what_was_seen_or_has_ended_is_made_up_for(large: tuple[MarketIndex, np.ndarray]) -> None:
    index, queries = large
    random = np.random.default_rng(5)
    contents, rows = len(index), 100
    on = shelf(contents, index, ends=np.where(random.random(contents) < 0.1, 5, 50))
    seen = random.integers(0, contents, (rows, 40))
    # The first of these queries has seen almost all that is near, the second almost everything.
    seen = np.concatenate([seen, np.full((rows, contents), -1)], axis=1)
    nearest = index.exact(queries[:1], contents - 10)[0]
    seen[0, 40 : 40 + K] = nearest[:K]
    seen[1, 40 : 40 + contents - 10] = index.exact(queries[1:2], contents - 10)[0]
    asked = replace(ask(on, seen=seen, time=10), query_vector=queries[:rows])
    found = two_tower(asked, K // 2)
    assert "eligible" not in vars(asked), "all contents were looked at for all requests"
    expected, _ = by_brute_force(index.vectors, queries[:rows], K // 2, asked.eligible)
    known = found >= 0
    assert np.take_along_axis(asked.eligible, found, axis=1)[known].all()
    np.testing.assert_array_equal(known.sum(axis=1), (expected >= 0).sum(axis=1))
    assert 0 < known[1].sum() <= 10
    assert set(found[0]) == set(expected[0])
    assert shares(found[2:], expected[2:]).mean() > 0.97


@pytest.mark.parametrize("name", ["vectors", "queries"])
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    given_arrays = {"vectors": np.ones((5, 3), np.float32), "queries": np.ones((5, 3), np.float32)}
    given_arrays[name][2, 1] = np.nan
    with pytest.raises(ValueError, match=f"the {name} of a market"):
        MarketIndex.build(**given_arrays, k=3)


def test_shares_count_what_stands_in_both_rows() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, -1, -1], [1, 2, 3, 8]])
    assert shares(found, truth).tolist() == [0.5, 0.25]
