from collections import defaultdict
from dataclasses import asdict
from itertools import count

import numpy as np
import pytest

from evaluation.readout import DRAWN, PLACES, UNTOLD, readout
from evaluation.runs import ALL
from feedback.log import HOUR_S, FeedbackLog
from feedback.records import outcome, shown

BEGIN = 480_000 * HOUR_S
NUMBERS = count()


class Told:
    """Records by the hour, as a log has them."""

    def __init__(self, records):
        self.of = defaultdict(list)
        for record in records:
            self.of[record["time"] // HOUR_S].append(record)

    def hours(self):
        return sorted(self.of)

    def read(self, hour):
        return self.of[hour], 0


def slate(user, release="old", time=BEGIN, market="ID", places=1, came=None, propensity=1.0):
    """Records of one request: places seen, and what came of the first."""
    number = next(NUMBERS)
    items = [{"content": f"c{p}", "position": p, "propensity": propensity} for p in range(places)]
    records = [shown(number, user, market, time, items, release)]
    return records + ([outcome(number, user, time, "c0", time, **came)] if came else [])


def read(records, since=BEGIN, until=BEGIN + 10_000 * HOUR_S, over=None):
    return readout(Told(records), since=since, until=until, over=over)


def found(made, figure, release, over="", market=ALL):
    (one,) = [
        f for f in made.figures if (f.market, f.release, f.over, f.figure) == (market, release, over, figure)
    ]
    return one


def test_means_are_over_requests_those_of_which_nothing_was_seen_too():
    made = read(
        [
            *slate("u1", places=3, came={"click": 1, "watch_s": 9.0}),
            *slate("u1", places=0),
            *slate("u2", places=1, propensity=0.5),
            *slate("u3", "new", market="VN", came={"order": 1, "value": 12.0}),
        ]
    )
    old = {figure: found(made, figure, "old") for figure in (PLACES, DRAWN, "click", "watch_s", "value")}
    assert [one.value for one in old.values()] == pytest.approx([4 / 3, 1 / 3, 1 / 3, 3.0, 0.0])
    assert {(one.requests, one.people, one.both) for one in old.values()} == {(3, 2, 0)}
    assert found(made, "value", "new", market="VN").value == 12
    assert not [f for f in made.figures if f.over], "they were in no market together"
    assert made.figures[0].market == ALL


def test_hours_in_which_one_release_was_served_alone_say_nothing_of_the_difference():
    good, bad = {"click": 1}, {"click": 0}
    made = read(
        [
            *[r for i in range(20) for r in slate(f"a{i}", "old", came=bad)],
            *[r for i in range(20) for r in slate(f"b{i}", "new", BEGIN + HOUR_S, came=good)],
            *[r for i in range(20) for r in slate(f"c{i}", "old", BEGIN + 2 * HOUR_S, came=good)],
            *[r for i in range(20) for r in slate(f"d{i}", "new", BEGIN + 2 * HOUR_S, came=good)],
        ]
    )
    assert found(made, "click", "old").value == 0.5
    assert found(made, "click", "new").value == 1
    difference = found(made, "click", "new", "old")
    assert (difference.value, difference.requests, difference.people) == (0, 40, 40)


def test_the_difference_is_that_of_a_regression_with_an_effect_of_each_hour_of_each_market():
    random = np.random.default_rng(0)
    records, rows = [], []
    for _ in range(600):
        hour, market = int(random.integers(4)), str(random.choice(["ID", "VN"]))
        release = "new" if random.random() < 0.2 + 0.15 * hour else "old"
        seconds = float(random.gamma(2, 3) + 5 * hour + 2 * (market == "VN") + (release == "new"))
        user = f"u{random.integers(80)}"
        records += slate(user, release, BEGIN + hour * HOUR_S, market, came={"watch_s": seconds})
        rows.append((user, hour * 2 + (market == "VN"), release == "new", seconds))
    user, stratum, new, seconds = (np.array(column) for column in zip(*rows))
    design = np.column_stack([new, *(stratum == s for s in range(8))]).astype(float)
    effects = np.linalg.lstsq(design, seconds, rcond=None)[0]
    residual = seconds - design @ effects
    bread = np.linalg.inv(design.T @ design)
    scores = [(design * residual[:, None])[user == one].sum(axis=0) for one in np.unique(user)]
    error = np.sqrt((bread @ (np.transpose(scores) @ np.array(scores)) @ bread)[0, 0])

    made = found(read(records, over="old"), "watch_s", "new", "old")
    assert made.value == pytest.approx(effects[0], rel=1e-6)
    assert (made.high - made.low) / 2 == pytest.approx(1.99 * error, rel=0.05)
    assert 0 < made.both <= made.people == 80


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    # Each market is an experiment of its own: people differ more than their requests do, hours differ.
    random = np.random.default_rng(1)
    records, experiments = [], 60
    for market in range(experiments):
        for person in range(24):
            taste, release = random.normal(10, 3), "new" if person % 3 else "old"
            for _ in range(random.integers(1, 4)):
                hour = int(random.integers(2))
                seconds = taste + 4 * hour + random.normal(0, 1) + (release == "new")
                came = {"watch_s": max(seconds, 0)}
                records += slate(f"u{person}", release, BEGIN + hour * HOUR_S, f"m{market}", came=came)
    made = read(records, over="old")
    of = [found(made, "watch_s", "new", "old", f"m{market}") for market in range(experiments)]
    assert 0.9 <= np.mean([one.low <= 1 <= one.high for one in of]) <= 0.99
    assert np.mean([one.value for one in of]) == pytest.approx(1, abs=0.4)
    assert {one.both for one in of} == {0}


def test_intervals_of_hours_with_two_people_are_not_too_narrow():
    random = np.random.default_rng(2)
    records, experiments = [], 100
    for market in range(experiments):
        for hour in range(20):
            for release in ("old", "new"):
                came = {"watch_s": max(random.normal(20 + hour, 3), 0)}
                user = f"{release}{random.integers(1000)}"
                records += slate(user, release, BEGIN + hour * HOUR_S, f"m{market}", came=came)
    made = read(records, over="old")
    of = [found(made, "watch_s", "new", "old", f"m{market}") for market in range(experiments)]
    assert 0.9 <= np.mean([one.low <= 0 <= one.high for one in of]) <= 0.99


def test_a_difference_that_rests_on_one_person_of_a_release_has_no_interval():
    many = [r for i in range(9) for r in slate(f"u{i}", "old", came={"watch_s": float(i)})]
    one = [r for _ in range(3) for r in slate("v1", "new", came={"watch_s": 5.0})]
    single = found(read([*many, *one]), "watch_s", "new", "old")
    assert (single.value, single.people) == (1, 10)
    assert np.isnan([single.low, single.high]).all()
    two = found(read([*many, *one, *slate("v2", "new", came={"watch_s": 7.0})]), "watch_s", "new", "old")
    assert two.low < two.value < two.high


def test_each_two_releases_of_an_hour_are_compared_or_all_with_one():
    records = [r for i in range(9) for r in slate(f"u{i}", "cab"[i % 3], BEGIN + i)]
    pairs = {(f.release, f.over) for f in read(records).figures if f.over}
    assert pairs == {("a", "c"), ("b", "c"), ("b", "a")}
    assert {(f.release, f.over) for f in read(records, over="b").figures if f.over} == {
        ("c", "b"),
        ("a", "b"),
    }
    with pytest.raises(ValueError, match="no slate of 'd' was told of in that time; there are some of c, a"):
        read(records, over="d")


def test_what_is_told_twice_counts_once_and_what_nobody_saw_is_lost():
    click = slate("u1", came={"click": 1})
    stray = outcome(next(NUMBERS), "u9", BEGIN, "c0", BEGIN, click=1)
    made = read([*click, *click, stray])
    assert (found(made, "click", "old").value, found(made, "click", "old").requests) == (1, 1)
    assert made.lost == 1


def test_requests_whose_client_named_no_release_are_told_apart():
    untold = shown(next(NUMBERS), "u1", "ID", BEGIN, [{"content": "c", "position": 0, "propensity": 1}])
    made = read([*slate("u2", came={"click": 1}), untold])
    assert {(f.release, f.over) for f in made.figures} == {("old", ""), (UNTOLD, ""), (UNTOLD, "old")}
    told = read([untold, *slate("u2", came={"click": 1})])
    assert found(told, "click", "old").value == found(told, "click", "old", UNTOLD).value == 1


def test_a_real_log_gives_what_its_records_do(tmp_path):
    records = [
        r
        for i in range(40)
        for r in slate(f"u{i}", "new" if i % 2 else "old", BEGIN + i * 200, came={"click": i % 3 == 0})
    ]
    log = FeedbackLog(tmp_path / "log")
    log.append(records)
    with (tmp_path / "log" / "torn").open("w"):
        pass
    with pytest.raises(ValueError, match="no hour of a feedback log"):
        readout(log, since=0, until=2**31)
    (tmp_path / "log" / "torn").unlink()
    seen = []
    made = readout(log, since=0, until=2**31, progress=lambda done, of: seen.append((done, of)))
    assert made == read(records)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_time_may_begin_and_end_within_an_hour():
    records = [r for i in range(10) for r in slate(f"u{i}", time=BEGIN + 60 * i, came={"click": i % 2})]
    made = read(records, since=BEGIN + 120, until=BEGIN + 300)
    assert (found(made, "click", "old").value, found(made, "click", "old").requests) == (1 / 3, 3)
    assert made.lost == 0


def test_hours_that_are_summed_on_the_way_give_what_all_at_once_give(monkeypatch):
    records = [
        r
        for i in range(40)
        for r in slate(
            f"u{i % 7}",
            "ab"[i % 2],
            BEGIN + i // 4 * HOUR_S,
            "ID" if i % 3 else "VN",
            came={"watch_s": i + 0.5},
        )
    ]
    whole = read(records).figures
    monkeypatch.setattr("evaluation.readout._PARTS", 2)
    assert len(whole) > 12
    for one, other in zip(read(records).figures, whole, strict=True):
        ends = {name: pytest.approx(getattr(other, name), nan_ok=True) for name in ("value", "low", "high")}
        assert asdict(one) == asdict(other) | ends


def test_lines_that_are_torn_are_counted():
    class Torn(Told):
        def read(self, hour):
            return self.of[hour], 2

    made = readout(Torn([*slate("u1"), *slate("u1", time=BEGIN + HOUR_S)]), since=0, until=2**40)
    assert made.damaged == 4
    assert "4 lines of the log are torn or changed" in made.remarks()


def test_a_time_without_slates_is_refused():
    with pytest.raises(ValueError, match="no slate was told of from 2024-10-04"):
        read(slate("u1"), since=BEGIN + HOUR_S)
