"""A build that goes on from an earlier one: what it learns from, what it keeps, what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ensemble.build import BuildConfig, build_release
from ensemble.plan import Plan
from market.dataset import write_dataset, write_like
from market.folders import FolderInUse, only_user
from market.statistics import DAY_S
from models.starts import FILE
from tests.market.test_dataset import part, write
from workflows import kept
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


def copied(small_build, folder):
    """A copy of the small build: what may be gone on from."""
    build = small_build.folder / "build" / "work"
    for name in ("fingerprint", f"features/{SPACES}", f"ranker/{FILE}"):
        (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / name, folder / "work" / name)
    return folder


@pytest.fixture(scope="module")
def gone_on(small_build, later, tmp_path_factory):
    """A build of the longer log from the small one on, its folder, and that of what it went on from, which is
    gone since the build had begun."""
    root = tmp_path_factory.mktemp("next")
    folder, before = root / "build", copied(small_build, root / "before")

    def step(name):
        if name == "examples":
            shutil.rmtree(before)

    return folder, build_release(later, folder, small_build.config, before=before, step=step), before


def test_a_build_goes_on_from_an_earlier_one_and_says_so(small_build, gone_on):
    folder, built, _ = gone_on
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
    _, built, _ = gone_on
    [old] = read_spaces(small_build.folder / "build" / "work" / "features" / SPACES).values()
    [new] = built.data.features.spaces
    np.testing.assert_array_equal(old.directions, new.directions)
    np.testing.assert_array_equal(old.mean, new.mean)


def test_taken_up_again_it_trains_nothing_anew(small_build, later, gone_on):
    folder, built, before = gone_on
    assert not before.exists()
    trained: list[str] = []

    def told(name, done, total, metrics):
        trained.extend([name] if "loss" in metrics else [])

    again = build_release(later, folder, small_build.config, before=before, progress=told)
    assert not trained
    assert again.release.sums == built.release.sums


def test_what_cannot_be_gone_on_from_is_refused(small_build, small_world_dataset, later, tmp_path):
    build = small_build.folder / "build"

    def refused(said, data=later, folder=tmp_path / "next", before=build, config=small_build.config):
        trained: list[str] = []
        with pytest.raises(ValueError, match=said):
            build_release(
                data,
                folder,
                config,
                before=before,
                progress=lambda name, *_: trained.append(name),
            )
        assert not trained
        assert not (folder / "release").exists() or folder == build

    refused("cannot be built from itself", folder=build)
    refused("is no folder of a build", before=tmp_path)
    assert not (tmp_path / ".lock").exists()
    refused("nothing new to learn", data=small_world_dataset)
    ranker, features = small_build.config.ranker, small_build.config.features
    refused(
        r"ranker-1/learned.npz is missing: ranker.members changed to 2.*set it to what it was",
        config=replace(small_build.config, ranker=replace(ranker, members=2)),
    )
    refused(
        r"other tasks that follow others \(ranker.esmm\), ranker.top",
        config=replace(small_build.config, ranker=replace(ranker, esmm=False, top=(8, 8))),
    )
    refused(
        "features.vector_dims = 4 makes 4 numbers of contents.v_image.*knows 32; set it to 32",
        config=replace(small_build.config, features=replace(features, vector_dims=4)),
    )
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


class Stopped(Exception):
    """Somebody ended the build."""


def begun(data, folder, config, before=None):
    """Begin a build, which may go on from another; it ends before it reads the log."""

    def step(name):
        raise Stopped

    with pytest.raises(Stopped):
        build_release(data, folder, config, before=before, step=step)
    return folder / "work"


@pytest.mark.parametrize("place", [".", "build", "../link"])
def test_nothing_is_built_in_a_data_set_which_is_replaced_as_a_whole(tmp_path, place):
    data = write(tmp_path / "data", impressions=[part([5, 6])])
    (tmp_path / "link").symlink_to(data.path)
    before = {path.name for path in data.path.iterdir()}
    with pytest.raises(ValueError, match=r"lies in the data set \S+/data, which never changes; choose"):
        build_release(data, data.path / place, BuildConfig())
    assert {path.name for path in data.path.iterdir()} == before


def test_a_killed_build_is_taken_up_by_the_code_that_made_it_and_by_no_other(tmp_path, monkeypatch):
    for package in ("market", "workflows", "models", "supply"):
        shutil.copytree(kept.ROOT / package, tmp_path / "code" / package)
    monkeypatch.setattr(kept, "ROOT", tmp_path / "code")
    data, folder = write(tmp_path / "data", impressions=[part([5, 6])]), tmp_path / "build"
    (begun(data, folder, BuildConfig()) / "trained").touch()
    for package, stays in (("supply", True), ("models", False), ("workflows", False), ("market", False)):
        with (tmp_path / "code" / package / "__init__.py").open("a") as code:
            code.write("pass\n")
        assert (begun(data, folder, BuildConfig()) / "trained").exists() == stays
        (folder / "work" / "trained").touch()


def test_an_earlier_build_is_read_once_and_read_again_where_it_is_another(small_build, later, tmp_path):
    before, config = copied(small_build, tmp_path / "before"), small_build.config
    work = begun(later, tmp_path / "next", config, before)
    (work / "trained").write_text("")
    # Gone: the copy is of that folder, and of no other.
    before.rename(tmp_path / "moved")
    assert (begun(later, tmp_path / "next", config, before) / "trained").exists()
    with pytest.raises(ValueError, match="elsewhere is no folder of a build"):
        build_release(later, tmp_path / "next", config, before=tmp_path / "elsewhere")
    # Back, but not as it was: nothing that was trained counts.
    shutil.move(tmp_path / "moved", before)
    (before / "work" / "fingerprint").write_text("another")
    assert not (begun(later, tmp_path / "next", config, before) / "trained").exists()
    assert (work / "earlier" / "fingerprint").read_text() == "another"


def test_an_earlier_build_that_is_at_work_or_damaged_takes_nothing_away(small_build, later, tmp_path):
    before, config = copied(small_build, tmp_path / "before"), small_build.config
    work = begun(later, tmp_path / "next", config, before)
    (work / "trained").write_text("")
    with (
        only_user(before, ""),
        pytest.raises(FolderInUse, match=r"another process works in .*before; build when"),
    ):
        build_release(later, tmp_path / "next", config, before=before)
    (before / "work" / "fingerprint").write_text("another")
    for name in (f"features/{SPACES}", f"ranker/{FILE}"):
        file = before / "work" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-20])
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            build_release(later, tmp_path / "next", config, before=before)
        file.write_bytes(whole)
    assert (work / "trained").exists()
    assert {path.name for path in (tmp_path / "next").iterdir()} == {"work", ".lock"}
