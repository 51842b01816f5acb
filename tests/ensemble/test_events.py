"""The events step writes what is right, refuses what is wrong, and says what nobody knows."""

import json
import os

import numpy as np
import pytest

from ensemble.errors import Code, RequestError
from ensemble.stages import build
from supply.journal import Tail
from tests.ensemble import synthetic


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))(5)


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def events(release, state):
    return build("events", release, state=str(state))


def table(*rows):
    made = np.full((len(rows), max(map(len, rows))), "", object)
    for row, said in enumerate(rows):
        made[row, : len(said)] = [event if isinstance(event, str) else json.dumps(event) for event in said]
    return made


def test_requests_are_written_in_order_and_counted_each_for_itself(events, release, state):
    known = str(release.array("text_content_id.npy")[0])
    first = [{"event": "ended", "content": known, "time": 3}, {"event": "ended", "content": "l99", "time": 4}]
    second = [{"event": "seller_suspended", "seller": "seller-2", "time": 5}]
    third = [{"event": "seller_suspended", "seller": "nobody", "time": 6}]
    made = events(event=table(first, second, third, []))
    assert made["written"].tolist() == [2, 1, 1, 0]
    assert made["unknown"].tolist() == [1, 0, 1, 0]
    assert Tail(state / "journal").read()[0] == [*first, *second, *third]


def test_one_wrong_event_refuses_its_request_and_nothing_is_written(events, state):
    sound = {"event": "ended", "content": "l1", "time": 3}
    with pytest.raises(RequestError, match="event 2: 'event' is 'closed'; use one of started") as caught:
        events(event=table([sound, {"event": "closed", "content": "l1"}]))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert Tail(state / "journal").read()[0] == []


@pytest.mark.parametrize(
    "text", ["[" * 100_000, r'{"event": "ended", "content": "\ud800"}'], ids=["deep", "half"]
)
def test_what_no_journal_can_hold_is_refused_as_other_wrong_events_are(events, state, text):
    with pytest.raises(RequestError, match=r"^event 1: .*; send ") as caught:
        events(event=table([text]))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.encode()
    assert Tail(state / "journal").read()[0] == []


def test_what_a_full_disk_cut_off_is_told_without_the_place_of_the_journal(events, state, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, block: write(handle, block[:10]))
    told = "the journal cannot be written: it took 10 of [0-9]+ bytes; make room and send again"
    with pytest.raises(RequestError, match=f"^{told}$") as caught:
        events(event=table([{"event": "ended", "content": "l1"}]))
    assert caught.value.code is Code.UNAVAILABLE


def test_without_a_folder_there_is_no_such_step(release):
    with pytest.raises(ValueError, match="need a folder"):
        build("events", release)
