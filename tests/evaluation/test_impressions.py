"""AUC among held-out impressions: the right rows, the right scores, and none where too little happened."""

import numpy as np
import pytest

from ensemble.cascade import Cascade
from evaluation import metrics, report
from evaluation.replay import Replay, ranking_and_ranker
from evaluation.report import offline_report
from tests.workflows.raw import raw_arrays
from workflows.examples import TEST
from workflows.frames import query_tables

pytestmark = pytest.mark.slow
CLICK = "auc of click"


def figures(build, metric=CLICK, **options):
    rows = offline_report(build.built.release, build.built.data, seed=1, **options)
    return {(row.market, row.system): row for row in rows if row.metric == metric}


@pytest.fixture(scope="module")
def every(small_build):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "LEAST_OUTCOMES", 5)
        return figures(small_build, queries_per_market=10**6)


@pytest.fixture(scope="module")
def errors(small_build):
    """Expected calibration errors, of what is served and of what the ranker said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "LEAST_OUTCOMES", 5)
        return figures(small_build, "ece of click", queries_per_market=10**6)


def held_out(data, market: str) -> np.ndarray:
    """Rows of a market's held-out impressions."""
    pairs, queries = data.examples.pairs, data.examples.queries
    here = queries.market[pairs.query] == data.examples.markets.index(market)
    return np.flatnonzero((pairs.split == TEST) & here)


def test_popularity_is_that_of_the_training_part_for_each_logged_impression(every, small_build):
    data = small_build.built.data
    for place, market in enumerate(data.examples.markets):
        rows = held_out(data, market)
        clicks = data.examples.pairs.outcomes["click"][rows]
        area = metrics.auc(clicks, data.latest[place, data.examples.pairs.content[rows]])
        row = every[market, "popularity"]
        assert row.value == pytest.approx(area)
        assert row.low < row.value < row.high
        users = data.examples.queries.user[data.examples.pairs.query[rows]]
        assert row.users == len(np.unique(users)) < len(np.unique(data.examples.pairs.query[rows]))


def test_the_ranker_is_asked_for_each_impression_as_if_alone(every, errors, small_build, small_release):
    data, cascade = small_build.built.data, Cascade(small_build.built.release)
    cascade.retrieval.moments = data.examples.moments
    pairs, queries = data.examples.pairs, data.examples.queries
    click = cascade.plan.tasks.index("click")
    cascade.run["ranking"] = ranking_and_ranker(small_release, threads=1)
    for market in data.examples.markets:
        rows = held_out(data, market)
        chance, before = [], []
        for start in range(0, len(rows), 50):
            query = pairs.query[rows[start : start + 50]]
            raw = raw_arrays(next(query_tables(data.examples, query)))
            made = cascade.apply("query", raw)
            contents = pairs.content[rows[start : start + 50], None].astype(np.int64)
            place = queries.market[query].astype(np.int64)
            history = queries.history[query].astype(np.int64)
            speaks = data.speaks[queries.user[query]]
            made |= cascade.retrieval.describe(contents, place, queries.time[query], history, speaks)
            made |= {"market_index": place, "candidates": contents, "recent": history}
            made |= cascade.apply("ranking", made)
            chance.append(made["probabilities"][:, 0, click])
            before.append(made["ranker_probabilities"][:, 0, click])
        served, clicks = np.concatenate(chance), pairs.outcomes["click"][rows]
        area = metrics.auc(clicks, served)
        assert every[market, "cascade"].value == pytest.approx(area, abs=1e-3)
        scores = Replay(small_release, data.examples).scores(rows)
        alone = served, np.concatenate(before)
        assert np.abs(alone[0] - alone[1]).max() > 1e-3
        for system, kind, expected in zip(("cascade", report.RAW), ("served", "raw"), alone):
            found = scores[kind][:, click]
            np.testing.assert_allclose(found, expected, rtol=1e-4)
            # Of equal probabilities rounding decides which falls into which bin.
            error = metrics.calibration_interval(clicks, found, rows).mean
            assert errors[market, system].value == pytest.approx(error, abs=5e-3)


def test_a_market_with_few_outcomes_has_no_area(small_build, monkeypatch):
    assert figures(small_build, queries_per_market=10**6) == {}  # the small world has no 100 clicks to test
    monkeypatch.setattr(report, "LEAST_OUTCOMES", 5)
    monkeypatch.setattr(report, "IMPRESSIONS_PER_QUERY", 4)
    some = figures(small_build, queries_per_market=50)
    assert some
    assert all(row.users <= 21 for row in some.values())  # 200 impressions, slates of ten
