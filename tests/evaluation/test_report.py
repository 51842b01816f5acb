"""The report of a build: rows of every market and stage, and popularity as one would count it by hand."""

from dataclasses import replace

import numpy as np
import pytest

from ensemble.cascade import Cascade
from ensemble.stages.user_state import NULL_INTEGER
from evaluation.metrics import interval, mean_interval
from evaluation.replay import Replay
from evaluation.report import METRICS, RAW, WEIGHTED, offline_report
from market.statistics import PAIR_FEATURES
from tests.workflows.raw import raw_arrays
from workflows.examples import TEST
from workflows.frames import query_tables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(small_build):
    """Figures of every held-out wanted outcome."""
    built = small_build.built
    return offline_report(built.release, built.data, queries_per_market=10**6, seed=1)


def test_every_market_has_every_system_and_metric(rows, small_build):
    examples = small_build.built.data.examples
    found = [(row.market, row.system, row.metric) for row in rows]
    systems = ("popularity", "two-tower", "cascade")
    assert {(m, s, k) for m in examples.markets for s in systems for k in (*METRICS, WEIGHTED)} <= set(found)
    assert len(set(found)) == len(found)
    assert all(0 <= row.value <= 1 and row.low <= row.value <= row.high for row in rows)
    assert {row.data_set for row in rows} == {examples.name}


def by_hand(data, market, order):
    """A market's figures from its test outcomes, one query at a time.

    Args:
        order: (query row, eligible contents) → contents, best first.
    """
    examples = data.examples
    pairs, queries, contents = examples.pairs, examples.queries, examples.contents
    opens = contents["created_at"].to_numpy(float, na_value=-np.inf)
    ends = contents["ended_at"].to_numpy(float, na_value=np.inf)
    recall, ndcg, weight = [], [], []
    for pair in np.flatnonzero(pairs.positive & (pairs.split == TEST)):
        query, content = int(pairs.query[pair]), int(pairs.content[pair])
        if queries.market[query] != market:
            continue
        past = {int(c) for c in queries.history[query] if c >= 0} - {content}
        time = queries.time[query]
        may = [
            c
            for c in np.flatnonzero(examples.available[market])
            if c not in past and opens[c] <= time < ends[c]
        ]
        ranked = list(order(query, may))[:20]
        place = ranked.index(content) if content in ranked else None
        recall.append(place is not None)
        ndcg.append(1 / np.log2(place + 2) if place is not None and place < 10 else 0.0)
        weight.append(1 / pairs.propensity[pair])
    return {
        "recall@20": np.mean(recall),
        "ndcg@10": np.mean(ndcg),
        WEIGHTED: np.average(recall, weights=weight),
    }


def figures(rows, market, system):
    own = [row for row in rows if (row.market, row.system) == (market, system)]
    return {row.metric: row.value for row in own if row.metric in (*METRICS, WEIGHTED)}


def test_popularity_is_the_share_that_a_count_by_hand_gives(rows, small_build):
    data = small_build.built.data
    for market, code in enumerate(data.examples.markets):
        count = data.latest[market]
        expected = by_hand(
            data, market, lambda query, may, count=count: sorted(may, key=lambda c: (-count[c], c))
        )
        assert figures(rows, code, "popularity") == pytest.approx(expected)


def test_the_two_tower_is_ranked_over_all_contents_of_the_market(rows, small_build, small_release):
    data = small_build.built.data
    cascade, vectors = Cascade(small_release), small_release.array("content_vectors.npy")
    raw = raw_arrays(next(query_tables(data.examples, np.arange(len(data.examples.queries)))))
    queries = cascade.apply("query", raw)["query_vector"]
    scores = queries @ vectors.T
    for market, code in enumerate(data.examples.markets):
        expected = by_hand(data, market, lambda query, may: sorted(may, key=lambda c: -scores[query, c]))
        # Scores that tie but for rounding may change places.
        assert figures(rows, code, "two-tower") == pytest.approx(expected, abs=0.02)


def test_a_release_that_counts_by_seasons_is_asked_with_the_season_of_each_query(seasonal_build):
    """Its pair features in the report are those that training has of the same pairs."""
    release, data = seasonal_build.release, seasonal_build.data
    rows = offline_report(release, data, queries_per_market=50, seed=1)
    assert {row.system for row in rows} == {"popularity", "two-tower", "cascade", RAW}
    replay, pairs = Replay(release, data.examples), data.examples.pairs
    logged = np.arange(pairs.rows(TEST).start, pairs.rows(TEST).stop)[:200]
    counted, season = [], PAIR_FEATURES.index("season") - len(PAIR_FEATURES)
    describe = replay.cascade.retrieval.describe

    def noted(candidates, *asked):
        made = describe(candidates, *asked)
        counted.append(made["content_numbers"][..., season][candidates >= 0])
        return made

    replay.cascade.retrieval.describe = noted
    replay.scores(logged)
    trained = data.pair_arrays(pairs.query[logged], pairs.content[logged], np.zeros(200, bool))["season"]
    assert trained.any()
    np.testing.assert_allclose(np.sort(np.concatenate(counted)), np.sort(trained[:, 0]), rtol=1e-6)


def test_users_are_the_people_who_were_asked_however_often(rows, small_build):
    examples = small_build.built.data.examples
    asked = examples.pairs.query[examples.pairs.positive & (examples.pairs.split == TEST)]
    user, market = examples.queries.user[asked], examples.queries.market[asked]
    for place, code in enumerate(examples.markets):
        people = len(set(user[market == place].tolist()))
        assert people < (market == place).sum()
        assert {row.users for row in rows if row.market == code and row.metric in METRICS} == {people}


def test_intervals_are_over_people_whose_outcomes_are_not_independent(rows, small_build, small_release):
    examples = small_build.built.data.examples
    pairs, queries = examples.pairs, examples.queries
    wanted = np.flatnonzero(pairs.positive & (pairs.split == TEST))
    for place, code in enumerate(examples.markets):
        here = wanted[queries.market[pairs.query[wanted]] == place]
        lists = Replay(small_release, examples).lists(here)["popularity"]
        found = (lists == pairs.content[here][:, None]).any(axis=1)
        expected = mean_interval(found, queries.user[pairs.query[here]])
        [row] = [r for r in rows if (r.market, r.system, r.metric) == (code, "popularity", "recall@20")]
        assert (row.value, row.low, row.high) == pytest.approx(tuple(expected))
        assert expected != pytest.approx(interval(found))


def test_users_of_what_was_drawn_are_the_people_to_whom_something_was_drawn(small_build):
    data = small_build.built.data
    pairs, queries = data.examples.pairs, data.examples.queries
    user = queries.user[pairs.query]
    sure = np.where(user % 3 > 0, 1, pairs.propensity)
    log = replace(data, examples=replace(data.examples, pairs=replace(pairs, propensity=sure)))
    rows = offline_report(small_build.built.release, log, queries_per_market=10**6, seed=1)
    asked = pairs.positive & (pairs.split == TEST)
    for place, code in enumerate(data.examples.markets):
        here = user[asked & (queries.market[pairs.query] == place)]
        users = {
            metric: {r.users for r in rows if (r.market, r.metric) == (code, metric)}
            for metric in (*METRICS, WEIGHTED)
        }
        drawn = len(set(here[here % 3 == 0]))
        assert users == {WEIGHTED: {drawn}, **{metric: {len(set(here))} for metric in METRICS}}


def test_a_sample_of_queries_is_drawn_by_the_seed(small_build):
    built = small_build.built

    def figures(seed):
        return offline_report(built.release, built.data, queries_per_market=5, seed=seed)

    assert {row.users for row in figures(1) if row.metric in METRICS} <= {1, 2, 3, 4, 5}
    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_raw_columns_of_the_log_are_those_that_the_server_writes(small_build, small_release):
    """At the end of the log, a query of the examples and one of the server read the same columns."""
    examples = small_build.built.data.examples
    cascade = Cascade(small_release)
    rows = np.arange(examples.queries.rows(TEST).start, examples.queries.rows(TEST).stop)[:50]
    raw = raw_arrays(next(query_tables(examples, rows)))
    market = np.array(examples.markets, object)[examples.queries.market[rows]]
    texts = small_release.array("text_content_id.npy").astype(object)
    history = examples.queries.history[rows]
    stage = cascade.user_state
    strangers = stage(
        user_id=np.full(len(rows), "nobody", object),
        market=market,
        time=examples.queries.time[rows],
        history=np.where(history >= 0, texts[np.maximum(history, 0)], ""),
        exclude=np.full((len(rows), 0), "", object),
        shown=np.full((len(rows), 0), "", object),
    )
    for column in cascade.plan.columns:
        name = f"raw_{column.name}"
        if column.source in ("context", "history") or column.name in ("market", "history_length"):
            served, logged = strangers[name], raw[name]
            if logged.ndim == 2:
                served = served[:, : logged.shape[1]]
                assert not (strangers[name][:, logged.shape[1] :] != "").any()
            np.testing.assert_array_equal(served, logged, name)
        assert raw[name].dtype == strangers[name].dtype


def test_nulls_are_written_as_the_compiled_workflow_takes_them():
    import pyarrow as pa

    table = pa.table(
        {
            "text": pa.array(["a", None]),
            "whole": pa.array([1, None], pa.int64()),
            "number": pa.array([0.5, None], pa.float32()),
            "many": pa.array([["a", "b"], []], pa.list_(pa.string())),
        }
    )
    raw = raw_arrays(table)
    assert raw["raw_text"].tolist() == ["a", ""]
    assert raw["raw_whole"].tolist() == [1, NULL_INTEGER]
    assert raw["raw_number"].tolist() == [0.5, 0.0]
    assert raw["raw_many"].tolist() == [["a", "b"], ["", ""]]
