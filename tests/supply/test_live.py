"""Events become arrays: the latest of each subject holds, unknown ids count, a restart loses nothing."""

import json
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supply.eligibility import BARRED, CLOSED, Eligibility
from supply.events import parse_all
from supply.journal import Journal
from supply.live import LiveState

CONTENTS, SELLERS = ["l0", "l1", "p2", "v3"], ["s0", "s1"]
SELLER = np.array([0, 1, 1, -1])
NEVER = np.iinfo(np.int64).max


def lookup(ids):
    return lambda wanted: np.array([ids.index(name) if name in ids else -1 for name in wanted.ravel()])


def live(folder):
    return LiveState(
        folder, contents=lookup(CONTENTS), sellers=lookup(SELLERS), content_count=4, seller_count=2
    )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class World:
    """Two rooms (the second scheduled from 100 to 200), a product with three pieces and a video."""

    def __init__(self, folder):
        self.folder, self.journal = folder, Journal(folder)
        self.rules = self.restarted()

    def restarted(self):
        return Eligibility(
            np.ones((1, 4), bool),
            np.array([10, 100, 10, 10]),
            np.array([NEVER, 200, NEVER, NEVER]),
            stock=np.array([-1, -1, 3, -1]),
            seller=SELLER,
            live=live(self.folder),
        )

    def tell(self, event, who=None, at=50, now=None, **more):
        subject = "seller" if event.startswith("seller") else "content"
        said = {"event": event, subject: who, "time": at, **more}
        self.journal.append(parse_all([json.dumps(said)], time.time() if now is None else now))
        self.rules.refresh()

    def open(self, at=150):
        """Ids of what may be shown at a time."""
        made = [
            [
                name
                for name, ok in zip(
                    CONTENTS, rules.allows(np.arange(4)[None], np.zeros(1, int), np.array([at]))[0]
                )
                if ok
            ]
            for rules in (self.rules, self.restarted())
        ]
        assert made[0] == made[1], "a restart must know the same"
        return made[0]


def test_a_room_that_ended_is_closed_at_any_time_until_it_starts_again(world):
    assert world.open() == CONTENTS
    world.tell("ended", "l0", at=150)
    for at in (20, 149, 150, 10**9):
        assert "l0" not in world.open(at)
    world.tell("started", "l0", at=160)
    assert "l0" in world.open(160)
    assert "l0" not in world.open(159)


def test_a_room_that_starts_early_or_runs_late_is_open_until_told_otherwise(world):
    world.tell("started", "l1", at=90)
    assert "l1" in world.open(95)
    assert "l1" not in world.open(200), "its scheduled end still holds"
    for start in (200, 300):  # in the very second in which it was to end, and later
        world.tell("started", "l1", at=start)
        assert "l1" in world.open(10**9)
        world.tell("ended", "l1", at=start + 1)
        assert "l1" not in world.open(10**9)


def test_what_is_said_of_an_open_room_does_not_move_its_start(world):
    world.tell("started", "l1", at=90)
    world.tell("viewers", "l1", at=120, viewers=8)
    world.tell("showing", "l1", at=121, product="p2")
    world.tell("put_back", "l1", at=122)
    assert "l1" in world.open(95)
    assert world.rules.opens[1] == 90


def test_a_catalogue_without_sellers_has_a_live_state_before_anything_is_told(tmp_path):
    def state():
        return LiveState(
            tmp_path, contents=lookup(CONTENTS), sellers=lookup([]), content_count=4, seller_count=0
        )

    ends = np.full(4, NEVER)
    rules = Eligibility(
        np.ones((1, 4), bool),
        np.zeros(4, int),
        ends,
        stock=np.full(4, -1),
        seller=np.full(4, -1),
        live=state(),
    )
    assert np.isnan(rules.viewers).all()
    Journal(tmp_path).append(
        parse_all(['{"event": "seller_suspended", "seller": "s0"}', '{"event": "ended", "content": "l0"}'], 9)
    )
    rules.refresh()
    assert rules.ends.tolist() == [CLOSED, NEVER, NEVER, NEVER]
    assert rules.live.unknown == 1


def test_an_event_that_comes_late_does_not_undo_a_later_one(world):
    world.tell("ended", "l0", at=60)
    world.tell("started", "l0", at=55)
    assert "l0" not in world.open()
    world.tell("started", "l0", at=60)
    assert "l0" in world.open(), "of equal times the one written last holds"


@pytest.mark.parametrize("compacted", [False, True])
def test_a_room_that_ended_before_its_announced_start_stays_closed(world, compacted):
    world.tell("started", "l0", at=130, now=100)
    assert "l0" not in world.open(129)
    assert "l0" in world.open(130), "a start may be announced"
    if compacted:
        world.journal.compact()
    world.tell("ended", "l0", at=110, now=110)
    if compacted:
        world.journal.compact()
        world.rules.refresh()
    for at in (110, 130, 131, 10**9):
        assert "l0" not in world.open(at)
    world.tell("started", "l0", at=120, now=120)
    assert "l0" in world.open(120), "it starts again"


def test_a_clock_that_goes_ahead_loses_no_end_and_no_later_start(world):
    world.tell("started", "l0", at=40, now=10)
    world.tell("ended", "l0", at=45, now=15)
    assert "l0" not in world.open(10**9)
    world.tell("started", "l0", at=16, now=16)
    assert "l0" in world.open(16)


@pytest.mark.parametrize(
    ("ahead", "now", "who"),
    [
        (("put_back", {}), ("taken_down", {}), "v3"),
        (("seller_restored", {}), ("seller_suspended", {}), "s0"),
        (("stock", {"stock": 9}), ("stock", {"stock": 0}), "p2"),
    ],
)
def test_what_closes_a_content_holds_against_what_lies_ahead(world, ahead, now, who):
    world.tell(ahead[0], who, at=9_000, now=100, **ahead[1])
    world.tell(now[0], who, at=110, now=110, **now[1])
    assert len(world.open(150)) == 3


def test_what_is_sold_out_taken_down_or_of_a_suspended_seller_is_closed_and_comes_back(world):
    for gone, back, who, lost in (
        (("stock", {"stock": 0}), ("stock", {"stock": 2}), "p2", {"p2"}),
        (("taken_down", {}), ("put_back", {}), "v3", {"v3"}),
        (("seller_suspended", {}), ("seller_restored", {}), "s1", {"l1", "p2"}),
    ):
        world.tell(gone[0], who, **gone[1])
        assert set(CONTENTS) - set(world.open()) == lost
        world.tell(back[0], who, **back[1])
        assert world.open() == CONTENTS


def test_two_reasons_to_be_closed_do_not_undo_each_other(world):
    world.tell("seller_suspended", "s1")
    world.tell("stock", "p2", stock=9)
    world.tell("put_back", "p2")
    assert "p2" not in world.open()


def test_of_what_may_not_be_shown_the_first_reason_is_told(world):
    every, reasons = np.arange(4), dict.fromkeys(BARRED, 0)
    world.tell("stock", "p2", at=20, stock=0)
    assert dict(zip(BARRED, world.rules.barred(every, 0, 150))) == reasons | {"sold out": 1}
    world.tell("taken_down", "p2", at=30)
    assert dict(zip(BARRED, world.rules.barred(every, 0, 150))) == reasons | {"taken down": 1}


def test_what_the_release_says_is_out_of_stock_is_closed_without_any_event():
    rules = Eligibility(
        np.ones((1, 2), bool),
        np.zeros(2, int),
        np.full(2, NEVER),
        stock=np.array([0, -1]),
        seller=np.array([-1, -1]),
    )
    assert rules.ends.tolist() == [CLOSED, NEVER]


def test_a_content_is_barred_until_the_second_in_which_it_opens_and_from_the_one_in_which_it_ends(world):
    barred = [world.rules.barred(np.arange(-1, 4), 0, at) for at in (9, 10, 99, 100, 199, 200)]
    ended, unopened = (BARRED.index(reason) for reason in ("ended", "not open"))
    assert [counts[unopened] for counts in barred] == [4, 1, 1, 0, 0, 0]
    assert [counts[ended] for counts in barred] == [0, 0, 0, 0, 0, 1]


def test_viewers_and_the_product_shown_are_known_by_row(world):
    world.tell("viewers", "l1", viewers=7)
    world.tell("showing", "l1", product="p2")
    assert world.rules.viewers[1] == 7
    assert np.isnan(world.rules.viewers[[0, 2, 3]]).all()
    assert world.rules.live.showing.tolist() == [-1, 2, -1, -1]
    world.tell("showing", "l1", product="unheard of", at=51)
    assert world.rules.live.showing[1] == -1


NUMBERS = st.tuples(st.integers(-1, 1), st.integers(0, 900), st.integers(0, 99))


@given(st.lists(NUMBERS, max_size=12))
@settings(max_examples=60)
def test_the_usual_number_of_viewers_is_the_same_however_many_events_come_at_once(tmp_path_factory, told):
    folder = tmp_path_factory.mktemp("state")
    journal, one_by_one = Journal(folder), live(folder)
    for room, at, many in told:  # in any order of time, some of no known room
        name = CONTENTS[room] if room >= 0 else "nowhere"
        journal.append([{"event": "viewers", "content": name, "time": at, "viewers": many}])
        one_by_one.refresh()
    at_once = live(folder)
    at_once.refresh()
    for name in ("viewers", "usual", "told"):
        np.testing.assert_array_equal(getattr(at_once, name), getattr(one_by_one, name), name)


def test_a_refresh_costs_what_is_new_however_many_contents_there_are(tmp_path):
    size = 1_000_000
    state = LiveState(
        tmp_path, contents=lookup(CONTENTS), sellers=lookup(SELLERS), content_count=size, seller_count=2
    )
    journal = Journal(tmp_path)
    made = [{"event": "viewers", "content": "l0", "viewers": 7}, {"event": "showing", "content": "l1"}]
    made[1]["product"] = "p2"
    journal.append(parse_all([json.dumps(made[0])], time.time()))
    state.refresh()  # the first of all is of every content
    for event in made:
        journal.append(parse_all([json.dumps(event)], time.time()))
        tracemalloc.start()
        state.refresh()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < size, "not a byte a content"


def test_unknown_ids_are_counted_and_harm_nobody(world):
    world.tell("ended", "l99")
    world.tell("seller_suspended", "s99")
    world.tell("ended", "l0")
    assert "l0" not in world.open()
    assert (world.rules.live.taken, world.rules.live.unknown) == (3, 2)


def test_only_what_changed_is_said_to_have_changed(world):
    world.journal.append(parse_all(['{"event": "viewers", "content": "l1", "viewers": 3}'], time.time()))
    assert world.rules.refresh().tolist() == [1]
    assert world.rules.refresh().tolist() == []
    world.journal.append(parse_all(['{"event": "seller_suspended", "seller": "s1"}'], time.time()))
    assert world.rules.refresh().tolist() == [1, 2]


def test_a_compaction_reopens_nothing(world):
    world.tell("ended", "l0")
    world.tell("stock", "p2", stock=0)
    world.journal.compact()
    world.rules.refresh()
    assert world.open() == ["l1", "v3"]


def test_of_a_journal_in_whose_place_another_was_put_nothing_holds(world):
    world.tell("ended", "l0")
    world.tell("seller_suspended", "s1")
    world.journal.path.unlink()
    Journal(world.folder).append(parse_all(['{"event": "taken_down", "content": "v3"}'], time.time()))
    world.rules.refresh()
    assert world.open() == ["l0", "l1", "p2"]


TOLD = st.tuples(
    st.sampled_from(["started", "ended", "taken_down", "put_back", "seller_suspended", "seller_restored"]),
    st.integers(0, 3),
    st.integers(0, 9),
)


@given(st.lists(TOLD, max_size=25), st.lists(st.integers(0, 25), max_size=3))
@settings(max_examples=60)
def test_events_in_any_portions_leave_what_one_by_one_leaves(tmp_path_factory, told, cuts):
    folder = tmp_path_factory.mktemp("state")
    world = World(folder)
    open_, down, suspended = {}, {}, {}
    for place, (event, who, at) in enumerate(told):
        seller = event.startswith("seller")
        name = SELLERS[who % 2] if seller else CONTENTS[who]
        field = suspended if seller else open_ if event in ("started", "ended") else down
        if at >= field.get(name, (None, -1))[1]:
            field[name] = event, at
        said = {"event": event, "seller" if seller else "content": name, "time": at}
        world.journal.append([said])
        if place in cuts:
            world.rules.refresh()
        if place == max(cuts, default=-1):
            world.journal.compact()
    world.rules.refresh()
    closed = {name for name, (event, _) in {**open_}.items() if event == "ended"}
    closed |= {name for name, (event, _) in down.items() if event == "taken_down"}
    gone = {SELLERS.index(name) for name, (event, _) in suspended.items() if event == "seller_suspended"}
    closed |= {name for name, seller in zip(CONTENTS, SELLER) if seller in gone}
    assert world.open() == [name for name in CONTENTS if name not in closed]
