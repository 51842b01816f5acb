"""A model that is blind to markets is told nothing of them; one for each market has its own log alone."""

import numpy as np
import pandas as pd
import pytest

from ensemble.build import BuildConfig
from ensemble.plan import Plan
from evaluation import adaptation
from evaluation.adaptation import blind, build_alone, build_blind, each_its_own
from evaluation.closed_loop import Asked, Player, held_out_requests
from evaluation.command import alone
from market.dataset import write_dataset
from market.tables import Tables
from market.world import World
from tests.evaluation.test_closed_loop import SMALL_WORLD


def test_a_blind_training_set_is_the_same_whatever_the_market(small_training_set):
    data = blind(small_training_set)
    assert "market" not in data.features.query.arrays
    assert "market" not in data.features.query.schema.column_names
    content = np.arange(50)
    time = np.full(50, small_training_set.examples.queries.time.max())
    one, other = (data.popularity(np.full(50, m), content, time, np.zeros(50, bool)) for m in (0, 1))
    np.testing.assert_array_equal(one, other)
    truth = small_training_set.popularity(np.zeros(50, int), content, time, np.zeros(50, bool))
    np.testing.assert_array_equal(one[1], truth[1])
    assert (data.latest == data.latest[0]).all()
    np.testing.assert_allclose(data.latest.sum(axis=0), small_training_set.latest.sum(axis=0), rtol=1e-6)
    prices = [data.offers(np.full(50, m), content, np.full(50, -1))[:, :2] for m in (0, 1)]
    np.testing.assert_array_equal(*prices)


@pytest.mark.slow
def test_releases_that_differ_in_what_they_are_told_of_markets_are_played(
    small_build, plain_config, small_world_dataset, tmp_path
):
    examples = small_build.built.data.examples
    unaware = build_blind(small_world_dataset, tmp_path / "blind", plain_config)
    assert Plan.of(unaware.release).query_ids == Plan.of(small_build.built.release).query_ids - 1
    np.testing.assert_array_equal(*unaware.release.array("popularity.npy"))
    trends = unaware.release.array("trend.npy")
    np.testing.assert_array_equal(*trends)
    assert trends.any()
    own = build_alone(small_world_dataset, tmp_path / "alone", plain_config)
    assert set(own) == {"GB", "ID"}
    for market, built in own.items():
        assert set(built.data.examples.queries.market) == {examples.markets.index(market)}
    requests = held_out_requests(examples, 20, seed=1)
    world = World(SMALL_WORLD)
    none = np.full((len(requests), 1), -1)
    asked = Asked(requests.user, requests.market, requests.time, none, none)
    mixed = each_its_own(own, examples, world, requests.begin, seed=1)(asked)
    for market, built in own.items():
        here = requests.market == market
        expected = Player(built.release, examples, world, requests.begin, seed=1).cascade_slate(asked)
        np.testing.assert_array_equal(mixed[here], expected[here])


def test_another_log_at_the_same_place_is_learned_anew(small_world_dataset, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(adaptation, "build_release", lambda data, *_, **__: given.append(data.impressions()))
    build_alone(small_world_dataset, tmp_path / "alone", BuildConfig())
    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "alone").rglob("users.parquet"))]
    build_alone(small_world_dataset, tmp_path / "alone", BuildConfig())
    assert written == [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "alone").rglob("users.parquet"))
    ]
    log = small_world_dataset.impressions()
    fewer = write_dataset(
        tmp_path / "fewer",
        name=small_world_dataset.name,
        feedback="impressions",
        split="time",
        users=small_world_dataset.users(),
        contents=small_world_dataset.contents(),
        sellers=small_world_dataset.sellers(),
        impressions=[log.iloc[: len(log) // 2]],
    )
    build_alone(fewer, tmp_path / "alone", BuildConfig())
    assert sum(map(len, given[-2:])) == len(log) // 2


def test_a_market_alone_has_its_own_users_outcomes_and_contents():
    tables = Tables(
        "t",
        "positives",
        "leave_last",
        users=pd.DataFrame({"user_id": ["a", "b"], "market": ["GB", "ID"]}),
        contents=pd.DataFrame({"content_id": ["x", "y"], "kind": "video", "markets": [["GB", "ID"], ["ID"]]}),
        impressions=pd.DataFrame({"user_id": ["a", "b"], "content_id": ["x", "y"], "market": ["GB", "ID"]}),
    )
    made = alone(tables, "GB")
    assert made.users["user_id"].tolist() == ["a"]
    assert made.impressions["content_id"].tolist() == ["x"]
    assert made.contents[["content_id", "markets"]].to_numpy().tolist() == [["x", ["GB"]]]
    with pytest.raises(ValueError, match="'BR'"):
        alone(tables, "BR")
