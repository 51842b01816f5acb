"""What serving knows of a moment by events is what training reads of it in the log."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.lookup import IdIndex
from market.moments import LoggedMoments, Timeline, moment_features
from supply.eligibility import FOREVER, Eligibility
from supply.journal import Journal
from supply.live import LiveState
from supply.moments import CurrentMoments

NAMES = np.array([f"c{i}" for i in range(5)])
ROOM = np.array([True, True, False, True, False])
START = 1_770_000_000
said = st.tuples(
    st.sampled_from(("viewers", "showing", "stock")),
    st.integers(0, 4),
    st.integers(0, 4000),
    st.integers(0, 40),
)


def events_of(statements):
    made = []
    for kind, content, time, value in statements:
        told = str(NAMES[value % 5]) if kind == "showing" else value
        key = {"viewers": "viewers", "showing": "product", "stock": "stock"}[kind]
        made.append({"event": kind, "content": str(NAMES[content]), "time": START + time, key: told})
    return made


def log_of(statements):
    def timeline(kind):
        rows = [(c, START + t, v % 5 if kind == "showing" else v) for k, c, t, v in statements if k == kind]
        return Timeline(*np.array(rows, np.int64).reshape(-1, 3).T)

    return LoggedMoments(
        ROOM,
        np.full(5, START - 60),
        np.array([3, -1, 5, 0, 9]),
        viewers=timeline("viewers"),
        showing=timeline("showing"),
        left=timeline("stock"),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return iter(lambda: tmp_path_factory.mktemp("state"), None)


def live_state(journal):
    return LiveState(
        journal.folder,
        contents=IdIndex(NAMES),
        sellers=IdIndex(np.array(["s"])),
        content_count=5,
        seller_count=1,
    )


@given(st.lists(said, max_size=30), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=100)
def test_features_by_events_are_those_by_the_log(folders, statements, parts, seed):
    """Events come in order of time, in any number of batches, each read before the next."""
    statements = sorted(statements, key=lambda row: row[2])
    journal = Journal(next(folders))
    live = live_state(journal)
    eligibility = Eligibility(
        np.ones((1, 5), bool),
        np.full(5, START - 60),
        np.full(5, FOREVER),
        stock=np.array([3, -1, 5, 0, 9]),
        seller=np.full(5, -1),
        live=live,
    )
    for part in np.array_split(np.arange(len(statements)), parts):
        journal.append(events_of([statements[i] for i in part]))
        eligibility.refresh()
    now = START + max((row[2] for row in statements), default=0) + 1 + seed % 900
    affinity = np.random.default_rng(seed).random(5).astype(np.float32)
    content, time = np.arange(5)[None], np.full((1, 5), now)
    served, logged = (
        moment_features(moments, content, time, lambda shown: np.where(shown >= 0, affinity[shown], 0))
        for moments in (CurrentMoments(eligibility, ROOM), log_of(statements))
    )
    np.testing.assert_allclose(served, logged, rtol=1e-4, atol=1e-5)


def test_without_a_live_state_a_room_has_its_age_and_stock_alone():
    eligibility = Eligibility(
        np.ones((1, 2), bool),
        np.array([START, START]),
        np.full(2, FOREVER),
        stock=np.array([4, -1]),
        seller=np.full(2, -1),
    )
    moments = CurrentMoments(eligibility, np.array([True, False]))
    content, time = np.arange(2), np.full(2, START + 600)
    made = moment_features(moments, content, time, lambda shown: np.ones(shown.shape))
    np.testing.assert_allclose(made, [[0, 0, np.log(2) / 2, 0, np.log(5) / 4], [0, 0, 0, 0, 0]], rtol=1e-6)


def test_a_room_of_unknown_opening_has_no_age_until_an_event_tells_it(folders):
    journal = Journal(next(folders))
    live = live_state(journal)
    eligibility = Eligibility(
        np.ones((1, 5), bool),
        np.zeros(5, np.int64),
        np.full(5, FOREVER),
        stock=np.full(5, -1),
        seller=np.full(5, -1),
        live=live,
    )
    moments, rooms, now = CurrentMoments(eligibility, ROOM), np.array([0, 1]), np.full(2, START + 600)

    def ages():
        return moment_features(moments, rooms, now, lambda shown: np.zeros(shown.shape))[:, 2]

    assert ages().tolist() == [0, 0]
    journal.append([{"event": "started", "content": "c1", "time": START}])
    eligibility.refresh()
    np.testing.assert_allclose(ages(), [0, np.log(2) / 2], rtol=1e-6)
