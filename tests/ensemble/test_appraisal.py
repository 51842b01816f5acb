"""What contents are worth in a market is the mean of what the ranker says for some of its people."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ensemble import appraisal
from ensemble.appraisal import FILE, PEOPLE, market_worth
from ensemble.cascade import Cascade
from ensemble.channels import Channel, Wishes
from ensemble.distil import queries_of
from ensemble.plan import Plan
from models.two_tower import encode, train_two_tower
from models.unseen import market_shares
from tests.ensemble.asking import requests
from workflows.examples import TRAIN


@pytest.fixture(scope="module")
def two_tower(small_build):
    built, config = small_build.built, small_build.config
    folder = small_build.folder / "build" / "work" / "two_tower"
    return train_two_tower(built.data, config.two_tower, folder, config.seed)[0]


@pytest.mark.slow
def test_every_content_for_sale_that_runs_has_the_mean_value_to_the_drawn_people(small_build, two_tower):
    data, release = small_build.built.data, small_build.built.release
    examples, table = data.examples, release.array(FILE)
    running = release.array("ended_at.npy") > examples.learned_until
    np.testing.assert_array_equal(~np.isnan(table), release.array("available.npy") & running)
    cascade, random = Cascade(release), np.random.default_rng(small_build.config.seed)
    cascade.retrieval.moments = examples.moments
    vectors = release.array("content_vectors.npy")
    for market, shares in enumerate(market_shares(examples)):
        rows = appraisal._drawn_queries(examples, shares, random)
        some = np.flatnonzero(~np.isnan(table[market]))[::40]
        values = []
        for row in rows:
            one = np.array([row])
            asked = queries_of(data, one, encode(two_tower.query_encoder, data.query_arrays(one), 1))
            asked |= {"market_index": np.array([market]), "time": np.array([examples.learned_until])}
            for content in some:
                said = asked | cascade.retrieval.describe(
                    np.array([[content]]),
                    *(asked[name] for name in ("market_index", "time", "recent", "speaks")),
                )
                said["retrieval_score"] = (asked["query_vector"] @ vectors[content])[:, None]
                chances = cascade.apply("ranking", said)["probabilities"]
                values.append(cascade.blend(chances, said["candidates"], said["market_index"])[0, 0])
        expected = np.reshape(values, (len(rows), len(some))).mean(axis=0)
        np.testing.assert_allclose(table[market, some], expected, rtol=1e-4)


@pytest.mark.slow
def test_blocks_do_not_matter_and_a_seed_draws_the_same_people(small_build, two_tower, monkeypatch):
    built, seed = small_build.built, small_build.config.seed
    monkeypatch.setattr(appraisal, "BLOCK", 37)
    again = market_worth(built.release, built.data, two_tower, seed)
    np.testing.assert_allclose(again, built.release.array(FILE), rtol=1e-5)
    others = market_worth(built.release, built.data, two_tower, seed + 1)
    assert np.nanmax(np.abs(others - again)) > 0


def log(markets: list[int]) -> SimpleNamespace:
    """Examples of training queries of these markets, after three of a test part."""
    queries = SimpleNamespace(
        rows={TRAIN: slice(3, 3 + len(markets))}.__getitem__, market=np.array([9, 9, 9, *markets])
    )
    return SimpleNamespace(queries=queries)


def test_people_are_of_the_markets_by_their_shares_however_many_queries_these_have():
    examples = log([0] * 900 + [1] * 90 + [2] * 10)
    drawn = [
        examples.queries.market[appraisal._drawn_queries(examples, np.array([0, 0.5, 0.5]), random)]
        for random in map(np.random.default_rng, range(40))
    ]
    assert all(len(some) == PEOPLE for some in drawn)
    counted = np.bincount(np.concatenate(drawn), minlength=3)
    assert counted[0] == 0
    # A market of ten queries cannot have half of sixteen at all times, each being drawn once.
    assert counted[1] > counted[2] > PEOPLE * 40 / 4


def test_few_queries_are_all_drawn_and_a_market_of_none_asks_anybody():
    random = np.random.default_rng(0)
    assert appraisal._drawn_queries(log([0, 1, 1]), np.array([0, 1.0]), random).tolist() == [4, 5]
    assert appraisal._drawn_queries(log([1, 1]), np.array([1.0, 0]), random).tolist() == [3, 4]


@pytest.mark.slow
def test_what_the_channel_brings_is_worth_the_most_of_what_may_be_shown(small_release):
    cascade, table = Cascade(small_release), small_release.array(FILE)
    made = cascade.up_to("user_state", requests(small_release, 8))
    made |= cascade.apply("query", made)
    found = cascade.retrieval.retrieve(**cascade.read("retrieval", made))
    quota = Plan.of(small_release).config.quotas["worth"]
    for row, market in enumerate(made["market_index"]):
        shelf, own, one = cascade.retrieval.shelves[market], found["candidates"][row], slice(row, row + 1)
        spared = np.concatenate([made["tired_sellers"][one], made["excluded_sellers"][one]], axis=1)
        wishes = Wishes(reads=made["reads"][one])
        may = shelf.rows[shelf.eligible(made["time"][one], made["seen"][one], spared, wishes)[0]]
        best = np.sort(table[market, may[~np.isnan(table[market, may])]])[::-1][:quota]
        brought = table[market, own[(found["channel"][row] & Channel.WORTH) > 0]]
        np.testing.assert_array_equal(np.sort(brought)[::-1], best)
