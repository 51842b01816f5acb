"""A build that goes on from an earlier one: what it learns from, what it keeps, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from ensemble.build import build_release
from ensemble.plan import Plan
from market.dataset import write_dataset, write_like
from market.statistics import DAY_S
from models.starts import FILE
from workflows.features import SPACES
from workflows.vectors import read_spaces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def later(small_world_dataset, tmp_path_factory):
    """The small world's log and its last two days once more, two days later."""
    log = pd.concat(list(small_world_dataset.impression_parts()))
    last = log[log["time"] > log["time"].max() - 2 * DAY_S]
    numbers = last["request_id"] + log["request_id"].max() + 1
    again = last.assign(time=last["time"] + 2 * DAY_S, request_id=numbers)
    return write_like(
        small_world_dataset,
        tmp_path_factory.mktemp("later") / "data",
        impressions=[log, again],
        moments=small_world_dataset.moments(),
    )


@pytest.fixture(scope="module")
def gone_on(small_build, later, tmp_path_factory):
    """A build of the longer log from the small one on, and its folder."""
    folder = tmp_path_factory.mktemp("next") / "build"
    return folder, build_release(later, folder, small_build.config, before=small_build.folder / "build")


def test_a_build_goes_on_from_an_earlier_one_and_says_so(small_build, gone_on):
    folder, built = gone_on
    assert built.release.info["went_on"]
    assert not small_build.built.release.info["went_on"]
    before = Plan.of(small_build.built.release)
    assert Plan.of(built.release).learned_until > before.learned_until
    state = json.loads((folder / "work" / "ranker" / "state.json").read_text())
    assert state["start"].keys() == state["history"][0].keys()
    builds = small_build.folder / "build", folder
    ends = [np.load(place / "work" / "ranker" / FILE)["until"] for place in builds]
    assert ends[0] < ends[1]
    # It learns from the new rows alone.
    pairs = np.load(folder / "work" / "ranker" / "pairs-0.npy", mmap_mode="r")
    rows = built.data.examples.pairs.rows(0)
    times = built.data.examples.queries.time[built.data.examples.pairs.query[rows]]
    assert 0 < len(pairs) == (times >= ends[0]).sum() < len(times)


def test_content_vectors_are_encoded_as_the_weights_know_them(small_build, gone_on):
    _, built = gone_on
    [old] = read_spaces(small_build.folder / "build" / "work" / "features" / SPACES).values()
    [new] = built.data.features.spaces
    np.testing.assert_array_equal(old.directions, new.directions)
    np.testing.assert_array_equal(old.mean, new.mean)


def test_taken_up_again_it_trains_nothing_anew(small_build, later, gone_on):
    folder, built = gone_on
    trained: list[str] = []

    def told(name, done, total, metrics):
        trained.extend([name] if "loss" in metrics else [])

    again = build_release(
        later, folder, small_build.config, before=small_build.folder / "build", progress=told
    )
    assert not trained
    assert again.release.sums == built.release.sums


def test_what_cannot_be_gone_on_from_is_refused(small_build, small_world_dataset, later, tmp_path):
    build = small_build.folder / "build"

    def refused(said, data=later, folder=tmp_path / "next", before=build):
        trained: list[str] = []
        with pytest.raises(ValueError, match=said):
            build_release(
                data,
                folder,
                small_build.config,
                before=before,
                progress=lambda name, *_: trained.append(name),
            )
        assert not trained
        assert not (folder / "release").exists() or folder == build

    refused("cannot be built from itself", folder=build)
    refused("is no folder of a build", before=tmp_path)
    refused("nothing new to learn", data=small_world_dataset)
    by_person = write_dataset(
        tmp_path / "by-person",
        name="by person",
        feedback="impressions",
        split="leave_last",
        users=later.users(),
        contents=later.contents(),
        impressions=later.impression_parts(),
    )
    refused("is not cut by time", data=by_person)
