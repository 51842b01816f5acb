"""A release of positives alone ends in a stacking of the ranker with the signals of retrieval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble.build import build_release
from ensemble.cascade import Cascade, reply
from ensemble.client import FeedClient
from ensemble.release import Release
from ensemble.stages.user_state import REQUEST
from ensemble.steps import check_wiring
from market.dataset import Dataset, write_dataset
from models.stacking import FILE, SIGNALS
from tests.conftest import serve
from tests.ensemble.asking import requests
from tests.ensemble.test_feed_server import assert_same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def positives(small_world_dataset, tmp_path_factory) -> Dataset:
    """The clicks of the small world as a log of positives."""
    of = small_world_dataset
    impressions = of.impressions()
    clicks = impressions.loc[impressions["click"] > 0, ["user_id", "content_id", "market", "time", "click"]]
    return write_dataset(
        tmp_path_factory.mktemp("positives") / "data",
        name="clicks",
        feedback="positives",
        split="leave_last",
        users=of.users(),
        contents=of.contents(),
        sellers=of.sellers(),
        impressions=[clicks.reset_index(drop=True)],
    )


@pytest.fixture(scope="module")
def stacked(positives, small_build, tmp_path_factory) -> Release:
    return build_release(positives, tmp_path_factory.mktemp("stacked"), small_build.config).release


@pytest.fixture(scope="module")
def plain(positives, small_build, tmp_path_factory) -> Release:
    """The same without stacking."""
    config = replace(small_build.config, stacking=replace(small_build.config.stacking, queries=0))
    return build_release(positives, tmp_path_factory.mktemp("plain"), config).release


def test_the_weights_are_in_the_release_and_the_graph_reads_what_they_need(stacked):
    assert len(stacked.array(FILE)) == 2 * len(SIGNALS) + 1
    cascade = Cascade(stacked)
    assert cascade.plan.ranking_reads == ("candidates", "recent", "retrieval_score")
    check_wiring(cascade.steps, REQUEST, reply(cascade.plan))


def test_the_ranker_has_the_last_word_where_no_query_is_asked(plain, stacked):
    assert FILE not in plain.files
    assert Cascade(plain).plan.ranking_reads == ("candidates", "recent")
    assert not list(plain.path.parent.glob(".*")), "a draft was left"
    request = requests(stacked, 64, seed=3)
    before, after = (Cascade(release)(request)["content_id"] for release in (plain, stacked))
    assert (before != after).any()
    assert (np.sort(before[:, :1]) != "").all()


def test_triton_serves_it_with_each_step_a_model(stacked, tmp_path):
    request = requests(stacked, 8, seed=4)
    with (
        serve(stacked, tmp_path / "serving", one_process=False) as server,
        FeedClient(server.grpc_url) as client,
    ):
        assert_same(client.infer(request), Cascade(stacked)(request))
