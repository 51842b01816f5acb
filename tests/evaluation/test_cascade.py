"""Pasar's two systems score every content, and candidates score as in the full ranking."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import evaluation.cascade
from evaluation.cascade import BELOW, FullCascade, Released, TwoTower, _training_history
from evaluation.command import load_tables
from evaluation.protocols import benchmarks, parts
from market.outcomes import OUTCOMES
from supply.fatigue import FatigueConfig
from workflows.examples import TRAIN, VALID

pytestmark = pytest.mark.slow

USERS = np.arange(30)


@pytest.fixture(scope="module")
def task(small_world_dataset):
    return benchmarks(load_tables("dataset", small_world_dataset.path))[0].task


@pytest.fixture(scope="module")
def released(small_build, task):
    systems = Released(small_build.config)
    systems.use(small_build.built, task)
    return systems


@pytest.fixture(params=[TwoTower, FullCascade])
def system(request, released):
    return request.param(released)


def test_every_content_is_scored_for_every_user(system, task):
    scores = system.score(USERS)
    assert scores.shape == (len(USERS), task.items)
    assert np.isfinite(scores).all()


def test_candidates_score_as_in_the_full_ranking(system):
    full = system.score(USERS)
    random = np.random.default_rng(0)
    # The cascade ranks what it retrieved; the rest stands below in the order of the two-tower.
    candidates = np.argsort(-full, axis=1)[:, random.permutation(20)]
    scores = system.score(USERS, candidates)
    assert scores.shape == candidates.shape
    retrieved = np.take_along_axis(full, candidates, axis=1)
    assert (retrieved > -BELOW / 2).all()
    np.testing.assert_allclose(scores, retrieved, atol=1e-5)


def test_the_cascade_ranks_what_was_not_retrieved_below_and_by_the_two_tower(released):
    full, near = FullCascade(released).score(USERS), TwoTower(released).score(USERS)
    below = full < -BELOW / 2
    assert below.any()
    assert (~below).any(axis=1).all()
    for scores, cosines, which in zip(full, near, below):
        order = np.argsort(-cosines[which], kind="stable")
        assert (np.diff(scores[which][order]) <= 0).all()
        assert len(np.unique(scores[which])) > 0.9 * len(np.unique(cosines[which])), "ties that it has not"


def test_users_of_two_markets_are_given_contents_of_their_own(released, task):
    users = np.r_[0:5, task.users - 5 : task.users]
    retrieved = FullCascade(released).score(users) > -BELOW / 2
    available = np.array(
        [[m in markets for m in task.markets] for markets in task.tables.contents["markets"]]
    )
    home = task.user_market[users]
    assert len(set(home)) > 1
    for row, market in enumerate(home):
        assert available[retrieved[row], market].all()


def test_validation_rows_are_history_only_where_the_name_says_so(released, task):
    wanted = task.validation()
    users = np.flatnonzero(np.diff(wanted.indptr))[:40]
    recent, known = (released.queries(users, known)["recent"] for known in (False, True))
    for row, user in enumerate(users):
        assert not set(wanted[user].indices.tolist()) & set(recent[row].tolist())
    assert (np.sort(recent, axis=1) != np.sort(known, axis=1)).any()
    assert FullCascade(released).name == "cascade"
    told = FullCascade(released, known=True)
    assert told.name == "cascade, validation known"
    assert (told.score(users) != FullCascade(released).score(users)).any()


def test_a_training_history_is_what_the_first_validation_query_knows_if_no_training_row_comes_later():
    user = np.array([0, 0, 1, 1, 0, 0, 1, 2])
    time = np.array([1, 2, 1, 9, 8, 5, 5, 4])
    history = np.array([[-1, -1]] * 4 + [[6, 5], [3, 4], [7, -1], [-1, -1]], np.int32)
    parts = {TRAIN: slice(0, 4), VALID: slice(4, 8)}
    queries = SimpleNamespace(user=user, time=time, history=history, rows=parts.__getitem__)
    left = np.array([[4, -1], [7, 8], [-1, -1], [1, 2]], np.int32)
    made = _training_history(SimpleNamespace(queries=queries), left)
    # Of user 1 a training row comes after the validation row; user 3 has none.
    assert made.tolist() == [[3, 4], [7, 8], [-1, -1], [1, 2]]


def test_nothing_that_validation_rows_alone_say_is_known_without_them(small_world_dataset, plain_config):
    """Of people who were shown in training, and did not want, what they wanted later."""
    tables = load_tables("dataset", small_world_dataset.path)
    log = tables.impressions.assign(follow=tables.impressions["click"])
    wanted = log[(parts(tables) == "valid") & (log["click"] == 1)]
    in_vain = wanted.assign(time=log["time"].min(), **{name: 0 for name in OUTCOMES if name in log})
    log = pd.concat([in_vain, log], ignore_index=True)
    task = benchmarks(replace(tables, impressions=log))[0].task
    fatigue = FatigueConfig(window_h=24 * 7, content_shows=1)
    features = replace(plain_config.features, history_length=2)
    cascade = replace(plain_config.cascade, fatigue=fatigue)
    released = Released(replace(plain_config, features=features, cascade=cascade))
    released.fit(task, 3, None)

    said = task.train.positive("click")
    for user, history in enumerate(released.trained.history):
        past = task.train.item[said & (task.train.user == user)][-2:]
        assert history[history >= 0].tolist() == past.tolist(), "as many as there are, the last ones"

    train, sold_by = task.train, pd.factorize(task.tables.contents["seller_id"], sort=True)[0]
    clicked = set(zip(train.user[train.positive("click")], train.item[train.positive("click")]))
    followed = {(user, sold_by[content]) for user, content in clicked}
    shown = set(zip(train.user, train.item))
    for kept, told, learned in (
        (released.trained.history, released.known.history, clicked),
        (released.trained.seen, released.known.seen, clicked),
        (released.trained.sellers, released.known.sellers, followed),
        (released.trained.tired["contents"], released.known.tired["contents"], shown),
    ):
        listed, more = (
            {(user, what[user, at]) for user, at in np.argwhere(what >= 0)} for what in (kept, told)
        )
        assert listed
        assert listed <= learned
        assert more - learned
    np.testing.assert_array_equal(released.queries(USERS)["followed"], released.trained.sellers[USERS])


def test_a_task_of_watch_time_is_answered_in_seconds(small_build, task):
    tables = task.tables
    contents = tables.contents.assign(duration_s=tables.contents["duration_s"].fillna(0))
    asked = replace(task, target="watch_s", tables=replace(tables, contents=contents))
    released = Released(small_build.config)
    released.use(small_build.built, asked)
    candidates = np.tile(np.flatnonzero(contents["duration_s"] > 0)[:50], (len(USERS), 1))
    seconds = FullCascade(released).score(USERS, candidates)
    log = tables.impressions["watch_s"]
    assert (seconds >= log.min()).all()
    assert (seconds <= log.max()).all()
    # What lasts longer is watched longer, though the ranker's rank knows no seconds.
    duration = contents["duration_s"].to_numpy()[candidates]
    assert np.corrcoef(seconds.ravel(), duration.ravel())[0, 1] > 0.5


def test_both_systems_share_one_build_a_seed(small_build, task, monkeypatch):
    built = []

    def build(dataset, folder, config, **_):
        built.append((dataset.name, len(dataset.impressions()), config.seed))
        return small_build.built

    monkeypatch.setattr(evaluation.cascade, "build_release", build)
    released = Released(small_build.config)
    for seed in (5, 6):
        for system in (TwoTower(released), FullCascade(released)):
            system.fit(task, seed=seed)
            assert np.isfinite(system.score(USERS[:3])).all()
    rows = len(task.tables.impressions)
    assert built == [(task.tables.name, rows, 5), (task.tables.name, rows, 6)]
