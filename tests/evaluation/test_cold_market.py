"""A market that training never saw: its log is gone, and it is served from the first request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper

import evaluation.cold_market
from ensemble.build import BuildConfig
from ensemble.cascade import Cascade
from ensemble.release import Release
from evaluation.adaptation import select_markets
from evaluation.closed_loop import EXPECTED
from evaluation.cold_market import cold_market
from evaluation.runs import ALL
from market.dataset import Dataset
from market.world import World, WorldConfig
from models.batches import UNSEEN
from tests.evaluation.test_closed_loop import SMALL_WORLD

WORLD = WorldConfig(
    users=400, contents=300, sellers=30, impressions=20_000, days=6, markets=("DE", "GB", "ID"), seed=5
)
"""Large enough that Germany's neighbours have the outcomes that make them themselves alone."""


def test_the_log_without_a_market_has_all_else(small_world_dataset, tmp_path):
    made = select_markets(small_world_dataset, ("ID",), tmp_path / "data")
    before, after = small_world_dataset.impressions(), made.impressions()
    assert set(after["market"]) == {"ID"}
    assert len(after) == (before["market"] == "ID").sum()
    assert made.markets == small_world_dataset.markets
    assert made.users().equals(small_world_dataset.users())
    assert made.contents().equals(small_world_dataset.contents())


def test_what_is_left_in_stock_without_a_market_is_as_if_it_had_ordered_nothing(
    small_world_dataset, tmp_path
):
    made = select_markets(small_world_dataset, ("ID",), tmp_path / "data").moments()
    log = small_world_dataset.impressions()
    orders = log.loc[(log["order"] == 1) & (log["market"] == "ID"), ["content_id", "time"]]
    assert 0 < len(orders) < (log["order"] == 1).sum()
    told = World(SMALL_WORLD).moments(orders)
    columns = ["content_id", "time", "viewers", "showing", "stock"]
    order = ["time", "content_id", "stock"]
    found, expected = (
        frame[columns].sort_values(order, ascending=[True, True, False]).reset_index(drop=True)
        for frame in (made, told)
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_market_that_is_not_there_cannot_be_selected(small_world_dataset, tmp_path):
    with pytest.raises(ValueError, match="'BR'"):
        select_markets(small_world_dataset, ("GB", "BR"), tmp_path / "data")


def test_an_only_market_has_no_neighbours(small_build, tmp_path):
    with pytest.raises(ValueError, match="only market"):
        cold_market(WorldConfig(markets=("GB",)), "GB", small_build.config, tmp_path, requests=10, seed=1)


def test_another_world_at_the_same_place_is_simulated_anew(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def learn(dataset, *_, **__):
        raise Stopped(len(dataset.impressions()))

    monkeypatch.setattr(evaluation.cold_market, "build_release", learn)
    lengths = []
    for impressions in (2000, 1000):
        world = replace(WORLD, impressions=impressions)
        with pytest.raises(Stopped) as stopped:
            cold_market(world, "DE", BuildConfig(), tmp_path, requests=10, seed=1)
        lengths.append(stopped.value.args[0])
        without = Dataset.open(tmp_path / "data-without-DE").impressions()
        assert len(without) == (Dataset.open(tmp_path / "data").impressions()["market"] != "DE").sum()
    assert lengths == [2000, 1000]


@pytest.fixture(scope="module")
def played(plain_config, tmp_path_factory):
    """Figures of Germany without its log, and where they were made."""
    folder = tmp_path_factory.mktemp("cold-market")
    return cold_market(WORLD, "DE", plain_config, folder, requests=10, seed=1), folder


@pytest.mark.slow
def test_every_policy_is_asked_the_same_requests_of_that_market_alone(played):
    rows, _ = played
    found = {row.system: row for row in rows if row.market == "DE" and row.metric == EXPECTED}
    assert set(found) == {"region's popularity", "with its log", "cold", "cold, no histories"}
    assert {row.market for row in rows} == {"DE", ALL}
    assert len({row.users for row in found.values()}) == 1
    assert 1 <= rows[0].users <= 10
    assert len({row.value for row in found.values()}) == 4


@pytest.mark.slow
def test_the_first_request_of_a_market_without_a_log_gets_what_its_neighbours_want_and_it_sells(played):
    _, folder = played
    release = Release.open(folder / "without-DE" / "release")
    cascade = Cascade(release)
    assert cascade.plan.markets == ("DE", "GB", "ID")
    popularity, available = release.array("popularity.npy"), release.array("available.npy")
    np.testing.assert_array_equal(popularity[0], popularity[1])  # Britain is all of Europe that has a log
    np.testing.assert_allclose(release.array("popularity_world.npy"), popularity[1:].sum(axis=0))
    constants = onnx.load(release.onnx_path("ranking.onnx")).graph.initializer
    (slopes,) = (numpy_helper.to_array(one) for one in constants if one.name == "calibration/slopes")
    assert (slopes[0] != 1).any()
    assert (slopes[1] != slopes[2]).any()
    stand_ins = release.array("stand_in_ids.npy")
    assert (stand_ins[0] == UNSEEN).sum() == 1  # of contents alone: sellers and topics mean what they did
    assert not stand_ins[1:].any()
    users = Dataset.open(folder / "data-without-DE").users()
    asked = users.loc[users["market"] == "DE", "user_id"].to_numpy(object)[:20]
    slates = cascade(
        {
            "user_id": asked,
            "market": np.full(20, "DE", object),
            "time": np.full(20, cascade.plan.as_of),
            "history": np.full((20, 0), "", object),
            "exclude": np.full((20, 0), "", object),
            "shown": np.full((20, 0), "", object),
            "diversity": np.zeros(20, np.float32),
            "seed": np.zeros(20, np.int64),
            "explain": np.zeros(20, bool),
        }
    )
    rows = cascade.user_state.contents(slates["content_id"])
    assert (rows >= 0).all()
    assert available[0][rows].all()
    assert np.isfinite(slates["slate_value"]).all()
