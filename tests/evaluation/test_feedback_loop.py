"""The loop is closed by records, log and the next data set, and nobody sees the test days."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import evaluation.feedback_loop
from evaluation.closed_loop import EXPECTED, MEASURES, Player, outcomes, requests_of
from evaluation.feedback_loop import FIRST, GREEDY, OWN, REPORTED, WORLDS, feedback_loop, moments_of
from evaluation.runs import ALL
from market.dataset import Dataset
from market.world import World
from tests.evaluation.test_closed_loop import SMALL_WORLD
from workflows.examples import SplitConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def played(small_build, tmp_path_factory):
    """Rows of a loop in which every build gives the small release, and what each was to learn from."""
    folder = tmp_path_factory.mktemp("loop")
    learned: dict[str, Dataset] = {}

    def learn(dataset, place, config, **_):
        assert config.split.test_fraction == REPORTED
        learned[place.name] = dataset
        return small_build.built

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.feedback_loop, "build_release", learn)
        rows = feedback_loop(SMALL_WORLD, small_build.config, folder, requests=40, seed=1)
    whole = Dataset.open(folder / "data")
    return rows, {name: dataset.impressions() for name, dataset in learned.items()}, learned, whole


def test_a_log_whose_days_before_the_first_release_are_for_the_test_is_refused(small_build, tmp_path):
    config = replace(small_build.config, split=SplitConfig(test_fraction=0.6))
    with pytest.raises(ValueError, match=r"leaves nothing to learn from before the 40% .* less than 0\.6"):
        feedback_loop(SMALL_WORLD, config, tmp_path, requests=40, seed=1)


def later(impressions: dict[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """Rows of the days in which the first release served."""
    return impressions[name][impressions[name]["time"] > impressions["first"]["time"].max()]


def test_builds_learn_from_days_before_the_test_part_alone(played):
    _, impressions, learned, whole = played
    assert list(learned) == ["first", "own", "greedy", "world"]
    log = whole.impressions()
    test = log["time"].quantile(0.9)
    for name, frame in impressions.items():
        assert frame["time"].max() < test
        assert (learned[name].moments()["time"] < test + 86_400).all()
    assert len(impressions["first"]) == pytest.approx(len(log) / 2, rel=0.02)
    pd.testing.assert_frame_equal(
        impressions["world"], log[log["time"] <= impressions["world"]["time"].max()], check_index_type=False
    )


def test_the_first_release_serves_the_people_of_the_next_days_at_their_times(played):
    _, impressions, _, _ = played
    asked = later(impressions, "world")[["user_id", "market", "time"]].drop_duplicates()
    for name in ("own", "greedy"):
        pd.testing.assert_frame_equal(
            impressions[name].head(len(impressions["first"])), impressions["first"], check_dtype=True
        )
        served = later(impressions, name)
        got = served[["user_id", "market", "time"]].drop_duplicates()
        key = ["time", "user_id"]
        pd.testing.assert_frame_equal(
            got.sort_values(key, ignore_index=True), asked.sort_values(key, ignore_index=True)
        )
        places = served.groupby("request_id")["position"].agg(["size", "max"])
        assert places["size"].le(10).all()
        assert (places["max"] == places["size"] - 1).all()
    own = later(impressions, "own")
    assert 0 < own["propensity"].min() < 1
    assert (own.loc[own["propensity"] < 1, "position"] == 9).all(), "the last place is the one that explores"
    assert (later(impressions, "greedy")["propensity"] == 1).all()


def test_what_came_of_the_slates_is_what_the_world_said(played, small_build):
    _, impressions, _, _ = played
    own = later(impressions, "own")
    examples = small_build.built.data.examples
    begin, end = own["time"].min(), own["time"].max() + 1
    times = np.asarray(examples.queries.time)
    served = requests_of(examples, np.flatnonzero((begin <= times) & (times < end)), begin)
    world = World(SMALL_WORLD)
    player = Player(small_build.built.release, moments_of(examples, small_build.built), world, begin, seed=1)
    made = outcomes(world, player.cascade_slate, served).sum(axis=0)
    told = dict(zip(MEASURES, made))
    assert own["click"].sum() == told["clicks"] > 0
    assert own["order"].sum() == told["orders"] > 0
    assert own["negative"].sum() == told["negative"]
    np.testing.assert_allclose(own["watch_s"].astype(float).sum(), told["watch (s)"], rtol=1e-5)
    np.testing.assert_allclose(own["value"].astype(float).sum(), told["value (USD)"], rtol=1e-5)


def test_what_happened_in_rooms_and_what_was_sold_is_told_of_these_days(played):
    _, impressions, learned, whole = played
    begin, end = impressions["first"]["time"].max(), later(impressions, "world")["time"].max()
    own, every = (d.moments() for d in (learned["own"], whole))
    days = own[own["time"] > begin]
    rooms = every[(every["time"] > begin) & (every["time"] <= end) & every["viewers"].notna()]
    told = days[days["viewers"].notna() & (days["time"] <= end)]
    key = ["time", "content_id"]
    pd.testing.assert_frame_equal(
        told[[*key, "viewers"]].sort_values(key, ignore_index=True),
        rooms[[*key, "viewers"]].sort_values(key, ignore_index=True),
        check_dtype=False,
    )
    sold = days[days["stock"].notna()]
    assert len(sold) == later(impressions, "own")["order"].sum()


def test_every_release_is_played_with_the_same_requests(played):
    rows, _, _, _ = played
    found = {(row.system, row.metric): row for row in rows if row.market == ALL}
    assert {system for system, _ in found} == {FIRST, OWN, GREEDY, WORLDS}
    assert len({found[system, EXPECTED].value for system in (FIRST, OWN, GREEDY, WORLDS)}) == 1, "one release"
    for system in (OWN, GREEDY, WORLDS):
        assert found[system, f"{EXPECTED} over {FIRST}"].value == 0
