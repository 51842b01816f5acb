"""A release takes over other knobs without learning, and refuses those that need a build."""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import ensemble.release
from ensemble.adjust import BUILT, FREE, INFO, TAUGHT, AdjustError, adjust
from ensemble.blending import Blend
from ensemble.cascade import served_steps
from ensemble.plan import FILE, WEIGHTS, CascadeConfig, Plan, Slot
from ensemble.release import MANIFEST, Release, ReleaseError, ReleaseWriter
from ensemble.repository import FEED, read_config, write_repository
from ensemble.stages.reordering import Reordering
from ensemble.stages.retrieval import Retrieval
from ensemble.wire import WIRE_REQUEST, wire_reply
from supply.fatigue import FatigueConfig
from tests.ensemble import synthetic

SEED = 7  # of a world with a pre-ranker and a quota for fresh contents

OTHER = {
    "category_share": 0.9,
    "pool": None,
    "rules": ("slots", "mmr"),
    "seller_cap": 7,
    "category_cap": 7,
    "content_frequency": 7,
    "seller_frequency": 7,
    "slots": (Slot("live", 1, 2),),
    "explore": 0.4,
    "explore_outcomes": 1,
    "quotas": {"two_tower": 1, "trending": 0},
    "fresh_exposures": 0,
    "weights": {"click": 3.0},
    "weights_for": {"GB": {"click": 3.0}},
    "price_usd": 99.0,
    "retrieved": None,
    "candidates": None,
    "slate": None,
    "trending_half_life_h": 1.0,
    "trending_prior": 1.0,
    "fatigue": FatigueConfig(window_h=1.0),
}
"""Of every knob a value that the world has not; None is one more than the world has."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return synthetic.release(tmp_path_factory.mktemp("worlds"), SEED)


@pytest.fixture(scope="module")
def knobs(world):
    return Plan.of(world).config


def other(config, *names):
    values = {name: OTHER[name] if OTHER[name] is not None else getattr(config, name) + 1 for name in names}
    return replace(config, **values)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def taught(release):
    """What the pre-ranker would learn from: candidates of every channel, and values of all contents."""
    plan, random = Plan.of(release), np.random.default_rng(1)
    rows, contents = 40, len(release.array("created_at.npy"))
    market = random.integers(0, len(plan.markets), rows)
    made = Retrieval(release).retrieve(
        query_vector=random.normal(size=(rows, plan.dim)).astype(np.float32),
        market_index=market,
        time=np.full(rows, plan.as_of),
        recent=random.integers(-1, contents, (rows, plan.history_length)),
        seen=random.integers(-1, contents, (rows, 3)),
        followed=random.integers(-1, 6, (rows, 3)),
        tired_sellers=np.full((rows, 1), -1),
        speaks=random.integers(-1, 2, rows),
    )
    every = np.tile(np.arange(contents), (rows, 1))
    chance = random.random((rows, contents, len(plan.tasks))).astype(np.float32)
    return [
        made["candidates"],
        made["channel"],
        made["content_numbers"],
        Blend(release)(chance, every, market),
    ]


def test_every_knob_is_free_or_taught_or_needs_a_build_and_is_so_once():
    declared = [knob.name for knob in dataclasses.fields(CascadeConfig)]
    assert sorted([*FREE, *TAUGHT, *BUILT]) == sorted(declared) == sorted(OTHER)


@pytest.mark.parametrize("knob", [*FREE, *TAUGHT])
def test_what_may_change_is_served_by_the_same_steps_and_free_knobs_teach_the_same(
    world, knobs, tmp_path, knob
):
    made = adjust(world.path, tmp_path / "made", other(knobs, knob)).release
    plan = Plan.of(made)
    assert plan == replace(Plan.of(world), config=other(knobs, knob))
    assert getattr(plan.config, knob) != getattr(knobs, knob)
    for one_process in (True, False):
        served = served_steps(plan, one_process=one_process)
        assert served == served_steps(Plan.of(world), one_process=one_process)
    Reordering(made)
    same = [np.array_equal(now, before) for now, before in zip(taught(made), taught(world))]
    assert all(same) == (knob in FREE)


@pytest.mark.parametrize("knob", BUILT)
def test_a_knob_that_needs_a_build_is_refused_by_name_and_nothing_is_written(world, knobs, tmp_path, knob):
    # Sizes contain one another, so that one may grow the others have to.
    sizes = ("slate", "pool", "candidates", "retrieved")
    names = sizes[sizes.index(knob) :] if knob in sizes else (knob,)
    with pytest.raises(
        AdjustError, match=rf"{knob}\b.* cannot change without `pasar build`: .*{knob} is "
    ) as told:
        adjust(world.path, tmp_path / "made", other(knobs, *names, "seller_cap"))
    assert "seller_cap" not in str(told.value), "that one may change"
    assert list(tmp_path.iterdir()) == []


def test_knobs_that_are_the_release_s_own_are_refused(world, knobs, tmp_path):
    with pytest.raises(AdjustError, match="has these knobs already"):
        adjust(world.path, tmp_path / "made", replace(knobs))
    assert list(tmp_path.iterdir()) == []


def test_weights_under_which_nothing_is_worth_showing_are_refused(world, knobs, tmp_path):
    nothing = replace(knobs, weights=dict.fromkeys(WEIGHTS, 0.0), weights_for={})
    with pytest.raises(ValueError, match=r"nothing in .* is worth showing"):
        adjust(world.path, tmp_path / "made", nothing)
    assert list(tmp_path.iterdir()) == []


def test_all_files_but_the_plan_are_the_source_s_and_the_source_stays(world, knobs, tmp_path):
    before = files(world.path)
    made = adjust(world.path, tmp_path / "made", other(knobs, "seller_cap")).release
    now = files(made.path)
    assert files(world.path) == before
    assert {name for name in now if now[name] != before[name]} == {FILE, MANIFEST}
    listed = json.loads(now.pop(MANIFEST))["files"]
    said = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    assert said == {name: (len(body), hashlib.sha256(body).hexdigest()) for name, body in now.items()}


def test_the_manifest_says_what_it_was_made_of_and_what_was_changed(world, knobs, tmp_path):
    first = adjust(world.path, tmp_path / "a", other(knobs, "seller_cap", "weights_for"))
    assert first.changed["seller_cap"] == (knobs.seller_cap, 7)
    assert first.changed["weights_for.live.click"] == (2.0, None)
    assert first.changed["weights_for.GB.click"] == (None, 3.0)
    assert set(first.since_taught) == set(first.changed) - {"seller_cap"}
    [told] = first.release.info[INFO]
    assert first.release.info == world.info | {INFO: [told]}
    assert told["changed"] == {knob: list(pair) for knob, pair in first.changed.items()}
    manifest = (world.path / MANIFEST).read_bytes()
    assert told["of"] == {
        "name": world.name,
        "created": world.created,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }


def test_releases_of_other_knobs_have_other_names_and_the_served_feed_says_its_own(world, knobs, tmp_path):
    first = adjust(world.path, tmp_path / "a", other(knobs, "seller_cap")).release
    second = adjust(first.path, tmp_path / "b", other(knobs, "seller_cap", "explore")).release
    assert len({world.name, first.name, second.name}) == 3
    assert first.name.split("+")[:-1] == second.name.split("+")[:-1] == [world.name]
    plan = Plan.of(second)
    steps = served_steps(plan, one_process=True)
    write_repository(tmp_path / "repository", second.path, steps, WIRE_REQUEST, wire_reply(plan))
    assert read_config(tmp_path / "repository", FEED).parameters["release"].string_value == second.name


def test_a_name_tells_models_apart_and_not_the_order_in_which_knobs_are_declared(world, knobs, tmp_path):
    with ReleaseWriter(tmp_path / "other", name=world.name) as other_models:
        other_models.link(world, but={"content_numbers.npy"})
        other_models.array("content_numbers.npy", world.array("content_numbers.npy") + 1)
    weights = {"GB": {"click": 3.0}, "BR": {"click": 2.0}}
    names = [
        adjust(source, tmp_path / made, replace(knobs, weights_for=declared)).release.name
        for made, source, declared in (
            ("a", world.path, weights),
            ("b", world.path, dict(reversed(weights.items()))),
            ("c", tmp_path / "other", weights),
        )
    ]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("reads", "knob", "stacked"),
    [
        (("retrieval_score",), "quotas", True),
        (("retrieval_score",), "fresh_exposures", True),
        (("retrieval_score",), "price_usd", False),
        (("candidates",), "quotas", False),
    ],
)
def test_a_stacking_learned_among_what_the_quotas_brought_and_its_lesson_grows_old_too(
    world, knobs, tmp_path, reads, knob, stacked
):
    with ReleaseWriter(tmp_path / "source", name="source") as source:
        source.link(world, but={FILE})
        source.json(FILE, replace(Plan.of(world), ranking_reads=reads).to_json())
    first = adjust(tmp_path / "source", tmp_path / "a", other(knobs, knob))
    again = adjust(first.release.path, tmp_path / "b", other(knobs, knob, "seller_cap"))
    learners = ("the pre-ranker", "the stacking") if stacked else ("the pre-ranker",)
    assert first.learners == again.learners == learners


def test_a_lesson_is_old_until_its_knobs_are_back_however_often_others_change(world, knobs, tmp_path):
    weights = adjust(world.path, tmp_path / "a", other(knobs, "price_usd"))
    cap = adjust(weights.release.path, tmp_path / "b", other(knobs, "price_usd", "seller_cap"))
    back = adjust(cap.release.path, tmp_path / "c", other(knobs, "seller_cap"))
    assert weights.since_taught == cap.since_taught == {"price_usd": (10.0, 99.0)}
    assert list(cap.changed) == ["seller_cap"]
    assert back.since_taught == {}
    assert len(back.release.info[INFO]) == 3


@pytest.mark.parametrize("file", [FILE, MANIFEST, "content_vectors.npy"])
def test_a_damaged_source_is_refused_by_file_name_and_nothing_is_written(world, knobs, tmp_path, file):
    folder = shutil.copytree(world.path, tmp_path / "damaged")
    (folder / file).write_bytes((folder / file).read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ReleaseError, match=file):
        adjust(folder, tmp_path / "made", other(knobs, "seller_cap"))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_source_that_changes_meanwhile_is_not_taken_over(world, knobs, tmp_path, monkeypatch):
    folder = shutil.copytree(world.path, tmp_path / "source")
    plan_of = Plan.of

    def damaged(release):
        vectors = folder / "content_vectors.npy"
        vectors.write_bytes(vectors.read_bytes()[:-1] + b"\x7f")
        return plan_of(release)

    monkeypatch.setattr(Plan, "of", damaged)
    with pytest.raises(ReleaseError, match=r"content_vectors\.npy changed while it was taken over"):
        adjust(folder, tmp_path / "made", other(knobs, "seller_cap"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_half_written_is_left_where_the_disk_is_full(world, knobs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(ensemble.release.os, "link", full)
    monkeypatch.setattr(ensemble.release.shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        adjust(world.path, tmp_path / "made", other(knobs, "seller_cap"))
    assert list(tmp_path.iterdir()) == []


def test_where_the_disk_has_no_links_files_are_copied(world, knobs, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("operation not permitted")

    linked = adjust(world.path, tmp_path / "linked", other(knobs, "seller_cap")).release
    monkeypatch.setattr(ensemble.release.os, "link", refused)
    copied = adjust(world.path, tmp_path / "copied", other(knobs, "seller_cap")).release
    assert copied.sums == linked.sums
    vectors = "content_vectors.npy"
    assert (linked.path / vectors).samefile(world.path / vectors)
    assert not (copied.path / vectors).samefile(world.path / vectors)


def test_a_release_is_never_changed_nor_written_into_another(world, knobs, tmp_path):
    folder = shutil.copytree(world.path, tmp_path / "source")
    with pytest.raises(ReleaseError, match="exists already"):
        adjust(folder, folder, other(knobs, "seller_cap"))
    with pytest.raises(ReleaseError, match="lies in the release"):
        adjust(folder, folder / "made", other(knobs, "seller_cap"))
    assert Release.open(folder).sums == world.sums
