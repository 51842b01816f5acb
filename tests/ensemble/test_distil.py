"""A release of positives alone ends in a stacking of the ranker with the signals of retrieval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble.adjust import adjust
from ensemble.build import Built, build_release
from ensemble.cascade import Cascade, reply
from ensemble.client import FeedClient
from ensemble.distil import _drawn, with_stacking
from ensemble.export import READS
from ensemble.release import Release
from ensemble.stages.user_state import REQUEST
from ensemble.steps import check_wiring
from market.dataset import Dataset, write_dataset
from models.item_graph import fit_item_graph
from models.stacking import FILE, SIGNALS
from models.two_tower import train_two_tower
from tests.conftest import serve
from tests.ensemble.asking import requests
from tests.ensemble.test_feed_server import assert_same
from workflows.examples import VALID

pytestmark = pytest.mark.slow


def clicks(of: Dataset, folder, split: str) -> Dataset:
    """The clicks of the small world as a log of positives."""
    impressions = of.impressions()
    wanted = impressions.loc[impressions["click"] > 0, ["user_id", "content_id", "market", "time", "click"]]
    wanted = wanted.assign(split="train") if split == "given" else wanted
    return write_dataset(
        folder / "data",
        name="clicks",
        feedback="positives",
        split=split,
        users=of.users(),
        contents=of.contents(),
        sellers=of.sellers(),
        impressions=[wanted.reset_index(drop=True)],
    )


@pytest.fixture(scope="module")
def stacked(small_world_dataset, small_build, tmp_path_factory) -> Release:
    """It weighs seasons, the graphs of markets and a low-rank filter, too, and has seen drawn candidates."""
    folder, config = tmp_path_factory.mktemp("stacked"), small_build.config
    config = replace(
        config,
        features=replace(config.features, season_days=1.0),
        item_graph=replace(config.item_graph, market_regularisation=20.0, low_rank=8),
        stacking=replace(config.stacking, drawn=True),
    )
    log = clicks(small_world_dataset, folder, "leave_last")
    return build_release(log, folder / "build", config).release


@pytest.fixture(scope="module")
def undivided(small_world_dataset, small_build, tmp_path_factory) -> Built:
    """All rows are for training, and no query for stacking."""
    folder = tmp_path_factory.mktemp("undivided")
    config = replace(
        small_build.config,
        item_graph=replace(small_build.config.item_graph, market_regularisation=20.0, low_rank=8),
        stacking=replace(small_build.config.stacking, queries=0),
    )
    return build_release(clicks(small_world_dataset, folder, "given"), folder / "build", config)


def test_where_only_positives_were_logged_nothing_is_known_of_worth(stacked):
    assert np.isnan(stacked.array("worth.npy")).all()


def test_the_weights_are_in_the_release_and_the_graph_reads_what_they_need(stacked):
    weights = stacked.array(FILE)
    assert len(weights) == 2 * len(SIGNALS) + 1
    assert weights[SIGNALS.index("season")] != 0
    assert weights[SIGNALS.index("own_affinity")] != 0
    assert weights[SIGNALS.index("low_rank")] != 0
    cascade = Cascade(stacked)
    assert cascade.plan.ranking_reads == READS
    check_wiring(cascade.steps, REQUEST, reply(cascade.plan))


def test_adjusting_says_that_the_stacking_learned_among_what_the_quotas_brought(stacked, tmp_path):
    config = Cascade(stacked).plan.config
    fewer = replace(config, quotas=config.quotas | {"trending": config.quotas["trending"] - 1})
    assert adjust(stacked.path, tmp_path / "a", fewer).learners == ("the pre-ranker", "the stacking")
    dearer = replace(config, weights=config.weights | {"click": 9.0})
    assert adjust(stacked.path, tmp_path / "b", dearer).learners == ("the pre-ranker",)


def test_drawn_candidates_are_of_the_market_unknown_to_the_user_and_hold_what_is_wanted(stacked):
    retrieval, random = Cascade(stacked).retrieval, np.random.default_rng(0)
    contents, queries = len(stacked.array("created_at.npy")), 12
    market = random.integers(0, len(retrieval.shelves), queries)
    seen = random.integers(-1, contents, (queries, 30))
    recent = random.integers(-1, contents, (queries, 5))
    wanted = np.zeros((queries, contents), bool)
    for row in range(queries):
        unknown = np.setdiff1d(np.arange(contents), np.union1d(seen[row], recent[row]))
        wanted[row, random.choice(unknown, row % 3, replace=False)] = True
    made = {"market_index": market, "recent": recent, "candidates": np.zeros((queries, 60), np.int64)}
    drawn = _drawn(retrieval, made, seen, wanted, random)
    for row in range(queries):
        liked, known = np.flatnonzero(wanted[row]), np.union1d(seen[row], recent[row])
        others = np.setdiff1d(drawn[row], [*liked, -1])
        assert sorted(drawn[row][np.isin(drawn[row], liked)]) == liked.tolist()
        assert np.isin(others, retrieval.shelves[market[row]].rows).all()
        assert len(others)
        assert not np.isin(others, known).any()


def test_the_ranker_has_the_last_word_where_no_query_is_asked(undivided):
    assert FILE not in undivided.release.files
    assert Cascade(undivided.release).plan.ranking_reads == ("candidates", "recent")
    folder = undivided.release.path.parent
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "release", "work"], "a draft was left"
    assert not (folder / "work" / "drafts").exists()


def test_rows_drawn_to_know_when_to_stop_are_in_the_served_item_graph(undivided, small_build):
    examples = undivided.data.examples
    assert examples.drawn
    assert len(examples.pairs.query[examples.pairs.rows(VALID)])
    whole = fit_item_graph(examples, small_build.config.item_graph, VALID).graph
    served = undivided.release.array("graph_weights.npy")
    np.testing.assert_array_equal(served, whole.weights)
    assert (served != undivided.data.graph.graph.weights).any()
    own = undivided.release.array("market_graph_weights.npy")
    assert (own != undivided.data.market_graphs.graph.weights).any()
    low_rank = undivided.release.array("low_rank_source.npy")
    assert low_rank.shape == undivided.data.low_rank.source.shape
    assert (low_rank != undivided.data.low_rank.source).any()


def test_what_people_want_after_the_validation_part_tells_the_stacking_nothing(
    undivided, small_build, tmp_path
):
    """They are asked what they do not know; contents that only the test part wants are among these."""
    config, data, work = small_build.config, undivided.data, undivided.release.path.parent / "work"
    two_tower, _ = train_two_tower(data, config.two_tower, work / "two_tower", config.seed)
    asked = replace(config.stacking, queries=60)

    def weights(name: str, **known: np.ndarray) -> np.ndarray:
        told = replace(data, examples=replace(data.examples, **known))
        made = with_stacking(undivided.release, tmp_path / name, told, two_tower, asked, seed=0)
        return made.array(FILE)

    nobody_knows = np.full_like(data.examples.latest_seen, -1)
    usual = weights("usual")
    np.testing.assert_array_equal(weights("later", latest_seen=nobody_knows), usual)
    assert (weights("earlier", seen_before_test=nobody_knows) != usual).any()


def test_triton_serves_it_with_each_step_a_model(stacked, tmp_path):
    request = requests(stacked, 8, seed=4)
    with (
        serve(stacked, tmp_path / "serving", one_process=False) as server,
        FeedClient(server.grpc_url) as client,
    ):
        assert_same(client.infer(request), Cascade(stacked)(request))
