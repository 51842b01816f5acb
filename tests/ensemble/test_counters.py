"""What a feed counts of itself: as one would count by hand, each thing once, whoever adds meanwhile."""

import math
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ensemble.cascade import Cascade, served
from ensemble.channels import Channel
from ensemble.counters import (
    CAME,
    COUNTERS,
    EMPTY,
    EVENTS,
    EXPECTED,
    FOUND,
    IN_VIEW,
    MADE,
    PLACES,
    REASONS,
    REFUSED,
    SLATES,
    STRANGERS,
    WORTH,
    Counter,
    SlateTally,
    StrangerTally,
    Tally,
    event_tally,
    record_tally,
    refusal_tally,
)
from ensemble.errors import Code, RequestError
from ensemble.rules import Reason
from ensemble.stages import build
from ensemble.stages.user_state import REQUEST
from ensemble.steering import NOTHING
from ensemble.steps import check_inputs
from ensemble.triton import Meter
from ensemble.wire import write_requests
from feedback.records import outcome, shown
from market.kinds import KINDS
from tests.ensemble.asking import requests

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def release(small_release):
    return small_release


@pytest.fixture(scope="module")
def cascade(release):
    return Cascade(release)


def some(release, rows, seed=0):
    """Requests, the first few of which leave nothing to show."""
    made = requests(release, rows, seed=seed)
    texts = release.array("text_content_id.npy").astype(object)
    exclude = np.full((rows, len(texts)), "", object)
    exclude[: rows // 3] = texts
    return check_inputs(REQUEST, made | {"exclude": exclude})


def total(counts, counter, *labels):
    return sum(
        amount for (of, named), amount in counts.items() if of is counter and set(labels) <= set(named)
    )


def test_slates_are_counted_as_one_would_by_hand(cascade, release):
    plan, kind = cascade.plan, release.array("kind_code.npy")
    tally = SlateTally(plan, kind)
    tally.open()
    batches = [cascade.everything(some(release, rows, seed=rows)) for rows in (1, 7, 20)]
    for made in batches:
        tally.add(made)
    counts = tally.take()
    by_hand: dict = {}

    def one(counter, *labels, amount=1.0):
        by_hand[counter, labels] = by_hand.get((counter, labels), 0) + amount

    for made in batches:
        for row, market in enumerate(np.array(plan.markets)[made["market_index"]].tolist()):
            one(SLATES, market)
            for place, rank in enumerate(made["slate_candidate_rank"][row]):
                if not rank:
                    one(EMPTY, market)
                    continue
                one(PLACES, market, KINDS[kind[made["candidates"][row, rank - 1]]])
                for channel in Channel:
                    if made["slate_channel"][row, place] & channel:
                        one(FOUND, market, channel.name.lower())
                one(REASONS, market, Reason(made["slate_reason"][row, place]).name.lower())
                value = float(made["slate_value"][row, place])
                one(WORTH, market, "gain" if value > 0 else "loss", amount=abs(value))
                for task, chance in zip(plan.tasks, made["slate_probabilities"][row, place].tolist()):
                    one(EXPECTED, market, task, amount=chance)
    assert by_hand[EMPTY, (plan.markets[0],)] > 0
    assert {series: amount for series, amount in counts.items() if amount} == pytest.approx(
        {series: amount for series, amount in by_hand.items() if amount}, rel=1e-5
    )


def test_people_whom_the_release_does_not_know_are_strangers(cascade):
    tally = StrangerTally(cascade.plan, cascade.user_state.users)
    tally.open()
    first, second = cascade.plan.markets[:2]
    known = str(cascade.user_state.users.sorted[0])
    tally.add({"user_id": np.array([known, "nobody", "né"], object), "market_index": np.array([0, 0, 1])})
    tally.add({"user_id": np.array(["nobody"], object), "market_index": np.array([1])})
    counts = tally.take()
    assert (counts[STRANGERS, (first,)], counts[STRANGERS, (second,)]) == (1, 2)
    assert total(tally.take(), STRANGERS) == 0


def test_what_clients_tell_of_is_counted_by_market_and_outcome():
    tally = record_tally()
    tally.open()
    places = [{"content": f"v{n}", "position": n, "propensity": 1.0} for n in range(3)]
    tally.add([shown(1, "u1", "ID", 5, places), outcome(1, "u1", 5, "v1", click=1, watch_s=9.5)])
    tally.add([shown(2, "u2", "GB", 5, places[:1]), outcome(1, "u1", 5, "v2", click=0, order=1)])
    tally.add([shown(3, "u1", "ID", 9, places[:2])])
    counts = tally.take()
    assert {market: counts[IN_VIEW, (market,)] for market in ("ID", "GB")} == {"ID": 5, "GB": 1}
    assert (counts[CAME, ("click",)], counts[CAME, ("order",)], counts[CAME, ("like",)]) == (1, 1, 0)


def test_live_events_and_refusals_are_counted_by_kind():
    events, refusals = event_tally(), refusal_tally("cascade")
    for tally in (events, refusals):
        tally.open()
    events.add([{"event": "ended"}, {"event": "ended"}, {"event": "viewers"}])
    refusals.add(Code.NOT_FOUND)
    counts = events.take() | refusals.take()
    assert (counts[EVENTS, ("ended",)], counts[EVENTS, ("viewers",)], counts[EVENTS, ("stock",)]) == (2, 1, 0)
    assert counts[REFUSED, ("cascade", "NOT_FOUND")] == 1
    assert counts[REFUSED, ("cascade", "INTERNAL")] == 0


def test_of_nothing_every_series_is_there_with_nothing(cascade, release):
    slates = SlateTally(cascade.plan, release.array("kind_code.npy"))
    strangers = StrangerTally(cascade.plan, cascade.user_state.users)
    slates.add(cascade.everything(some(release, 3)))  # before anybody listens
    for tally in (slates, strangers, record_tally(), event_tally(), refusal_tally("x")):
        tally.open()
        counts = tally.take()
        assert counts
        assert not any(counts.values())
    markets = cascade.plan.markets
    assert {named[0] for of, named in slates.take() if of is FOUND} == set(markets)
    assert len([named for of, named in slates.take() if of is FOUND]) == len(markets) * len(Channel)


@pytest.mark.parametrize("one_process", [True, False], ids=["in one process", "each step a model"])
def test_what_a_step_serves_is_counted(release, cascade, one_process):
    request = some(release, 9, seed=3)
    wire = write_requests(request)
    if one_process:
        steps = [served("cascade", release, NOTHING)]
    else:
        steps = [served(name, release, NOTHING) for name in ("user_state", "retrieval", "reordering")]
    tallies = [tally for step in steps for tally in step.tallies]
    assert len(tallies) == 2
    for tally in tallies:
        tally.open()
    if one_process:
        steps[0](request=wire)
    else:
        begin, _, end = steps
        made = begin(request=wire)
        made |= cascade.apply("query", made)
        made |= cascade.retrieval(**cascade.read("retrieval", made))
        made |= cascade.apply("ranking", made)
        end(**cascade.read("reordering", made), user_id=made["user_id"])
    counts = {series: amount for tally in tallies for series, amount in tally.take().items()}
    expected = cascade(request)
    assert total(counts, SLATES) == 9
    assert total(counts, EMPTY) == (expected["content_id"] == "").sum() > 0
    assert total(counts, EXPECTED, "click") == pytest.approx(
        expected["slate_probabilities"][..., cascade.plan.tasks.index("click")].sum(), rel=1e-5
    )
    assert total(counts, STRANGERS) == (cascade.user_state.users(request["user_id"]) < 0).sum()


def test_what_was_refused_or_could_not_be_written_is_no_feedback(release, tmp_path):
    step = build("feedback", release, feedback=str(tmp_path / "log"))
    (tally,) = step.tallies
    tally.open()
    with pytest.raises(RequestError, match="record 1"):
        step(record=np.array([["{}"]], object))
    assert not any(tally.take().values())


def test_nothing_is_lost_or_counted_twice_while_others_go_on_adding():
    grown = Counter("pasar_test_total", "", ())
    tally = Tally(lambda runs: {(grown, ()): sum(runs)})
    tally.open()
    threads = [threading.Thread(target=lambda: [tally.add(1) for _ in range(20_000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    taken = 0.0
    while any(thread.is_alive() for thread in threads):
        taken += tally.take()[grown, ()]
    assert taken + tally.take()[grown, ()] == 60_000


class Prometheus:
    """Keeps series as Triton does for its Python backend."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self):
        self.series = {}

    def __call__(self, name, description, kind):
        assert description
        return SimpleNamespace(Metric=lambda labels: self._metric((name, *sorted(labels.items())), kind))

    def _metric(self, key, kind):
        assert key not in self.series, "a process makes a series once"
        self.series[key] = 0.0
        if kind == self.GAUGE:
            return SimpleNamespace(set=lambda value: self.series.update({key: value}))

        def increment(by):
            assert by >= 0
            self.series[key] += by

        return SimpleNamespace(increment=increment)


def test_a_meter_begins_with_zeros_and_tells_the_rest_when_it_ends():
    prometheus, tally = Prometheus(), refusal_tally("pick")
    release = SimpleNamespace(name="nightly", created="2026-03-02T00:00:00+00:00")
    meter = Meter(prometheus, [tally], release, "3", every_s=60)
    made = (MADE.name, ("release", "nightly"), ("version", "3"))
    refused = {code: (REFUSED.name, ("code", code), ("step", "pick")) for code in ("NOT_FOUND", "INTERNAL")}
    assert prometheus.series[made] == 1_772_409_600
    assert prometheus.series[refused["NOT_FOUND"]] == 0
    tally.add(Code.NOT_FOUND)
    meter.release()
    assert prometheus.series[refused["NOT_FOUND"]] == 1
    assert prometheus.series[refused["INTERNAL"]] == 0
    assert math.isnan(prometheus.series[made]), "it is served no more"


def test_a_meter_tells_in_turns():
    prometheus, tally = Prometheus(), refusal_tally("pick")
    told = threading.Event()
    take = tally.take

    def taking():
        counts = take()
        if any(counts.values()):
            told.set()
        return counts

    tally.take = taking
    meter = Meter(prometheus, [tally], every_s=0.01)
    tally.add(Code.INTERNAL)
    assert told.wait(60)
    meter.release()
    assert prometheus.series[REFUSED.name, ("code", "INTERNAL"), ("step", "pick")] == 1


def test_a_release_that_another_process_goes_on_serving_is_told_of_when_one_ends():
    made = (MADE.name, ("release", "nightly"), ("version", "3"))
    release = SimpleNamespace(name="nightly", created="2026-03-02T00:00:00+00:00")
    prometheus, shared = Prometheus(), Prometheus()
    old = Meter(prometheus, [], release, "3", every_s=60)
    shared.series = prometheus.series
    del prometheus.series[made]
    new = Meter(shared, [], release, "3", every_s=0.01)
    old.release()
    until = time.monotonic() + 60
    while math.isnan(prometheus.series[made]) and time.monotonic() < until:
        time.sleep(0.01)
    assert prometheus.series[made] == 1_772_409_600
    new.release()
    assert math.isnan(prometheus.series[made]), "it is served no more"


def test_no_series_is_let_go_of_when_the_meter_is_or_the_process_ends():
    """Triton's Python backend ends with a fault where one is."""
    program = """
import gc, os
from types import SimpleNamespace
from ensemble.counters import refusal_tally
from ensemble.triton import Meter

class Noticed:
    def __init__(self, **told): pass
    def __del__(self): os.write(1, type(self).__name__.encode() + b" is let go of\\n")
    def set(self, value): pass

class Family(Noticed):
    COUNTER, GAUGE = "counter", "gauge"
    def Metric(self, labels): return Noticed()

Noticed()
release = SimpleNamespace(name="nightly", created="2026-03-02T00:00:00+00:00")
meter = Meter(Family, [refusal_tally("pick")], release, "1")
meter.release()
assert len(meter._series) > 1
del meter
gc.collect()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "Noticed is let go of\n"), said.stderr


def test_names_are_prometheus_names_and_the_docs_have_each():
    page = (REPOSITORY / "docs" / "serving.md").read_text()
    for counter in COUNTERS:
        assert re.fullmatch(r"pasar_[a-z_]+_total", counter.name)
    for counter in (*COUNTERS, MADE):
        assert f"`{counter.name}`" in page
        assert all(re.fullmatch("[a-z]+", label) for label in counter.labels)
    told = set(re.findall(r"pasar_[a-z_]+(?:_total|_seconds)", page))
    assert told == {counter.name for counter in (*COUNTERS, MADE)}
