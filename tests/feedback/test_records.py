"""Records of what was shown and what came of it: what is right keeps what it says, the rest says why not."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.records import OUTCOME, SHOWN, outcome, parse, shown
from market.outcomes import FLAGS, OUTCOMES
from supply.events import AHEAD_S, EventError, parse_all

NOW = 1_773_619_100
SLATE = {
    "event": "shown",
    "request": 7,
    "user": "u1",
    "market": "ID",
    "time": NOW - 20,
    "items": [
        {"content": "v1", "position": 0, "propensity": 1},
        {"content": "v2", "position": 9, "propensity": 0.125},
    ],
}
CLICK = {"event": "outcome", "request": 7, "user": "u1", "time": NOW - 20, "content": "v2"}
CLICK |= {"at": NOW, "click": 1}


def taken(record) -> dict:
    return parse(json.dumps(record), NOW)


def test_a_record_keeps_what_it_says():
    assert taken(SLATE) == SLATE
    assert taken(SLATE | {"release": "nightly"}) == SLATE | {"release": "nightly"}
    assert taken(SLATE | {"items": []}) == SLATE | {"items": []}, "nothing of it came into view"
    assert taken(CLICK) == CLICK
    without = {key: value for key, value in CLICK.items() if key != "at"}
    assert taken(without) == CLICK, "what does not say when happened now"


def test_what_the_builders_make_is_right():
    made = shown(7, "u1", "ID", NOW - 20, SLATE["items"], "nightly")
    assert taken(made) == SLATE | {"release": "nightly"}
    assert taken(shown(7, "u1", "ID", NOW - 20, SLATE["items"])) == SLATE
    assert taken(outcome(7, "u1", NOW - 20, "v2", NOW, click=1)) == CLICK
    assert abs(outcome(7, "u1", 0, "v2", click=1)["at"] - time.time()) < 60


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.dictionaries(st.sampled_from(OUTCOMES), st.integers(0, 1), min_size=1),
)
def test_every_outcome_and_every_number_of_a_request_is_taken(request, came):
    record = {**CLICK, "request": request} | came
    assert taken(record) == record


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ([], r"\[\] is no object"),
        ({"event": "click"}, "'event' is 'click'; use one of shown, outcome"),
        (CLICK | {"market": "ID"}, "'outcome' has no 'market'; it has event, request"),
        (SLATE | {"click": 1}, "'shown' has no 'click'"),
        (SLATE | {"request": 2**63}, "'request' of 'shown' is 9223372036854775808; send a whole number"),
        (SLATE | {"request": True}, "'request' of 'shown' is True"),
        (SLATE | {"user": ""}, "'user' of 'shown' is ''; send an id"),
        (SLATE | {"user": "u" * 257}, "1 to 256 characters"),
        (SLATE | {"user": "u\0"}, "without NUL"),
        (SLATE | {"user": "\ud800"}, "half a character"),
        (SLATE | {"time": NOW + AHEAD_S + 1}, "'time' of 'shown'"),
        (SLATE | {"time": 1.5}, "'time' of 'shown' is 1.5"),
        (SLATE | {"market": "Narnia"}, "'market' of 'shown' is 'Narnia'; use one of"),
        (SLATE | {"release": 3}, "'release' of 'shown' is 3"),
        (SLATE | {"items": SLATE["items"] * 501}, "send a list of at most 1,000 places"),
        (SLATE | {"items": ["v1"]}, "a place of 'shown' is 'v1'; send content, position, propensity"),
        (SLATE | {"items": [SLATE["items"][0] | {"click": 1}]}, "a place of 'shown' is"),
        (SLATE | {"items": [SLATE["items"][0] | {"position": 2**15}]}, "'position' of 'shown' is 32768"),
        (SLATE | {"items": [SLATE["items"][0] | {"propensity": 0}]}, "'propensity' of 'shown' is 0"),
        (SLATE | {"items": [SLATE["items"][0] | {"propensity": 1.01}]}, "'propensity' of 'shown' is 1.01"),
        (SLATE | {"items": [SLATE["items"][0] | {"propensity": math.nan}]}, "'propensity' of 'shown' is nan"),
        (CLICK | {"click": 2}, "'click' of 'outcome' is 2; send a whole number from 0 to 1"),
        (CLICK | {"click": 0.5}, "'click' of 'outcome' is 0.5"),
        (CLICK | {"watch_s": -1}, "'watch_s' of 'outcome' is -1; send a finite number from 0 on"),
        (CLICK | {"value": math.inf}, "'value' of 'outcome' is inf"),
        (CLICK | {"value": 10**400}, "'value' of 'outcome' is 1000"),
        (CLICK | {"value": True}, "'value' of 'outcome' is True"),
        (CLICK | {"rating": "good"}, "'rating' of 'outcome' is 'good'"),
        (CLICK | {"at": -1}, "'at' of 'outcome' is -1"),
        (
            {k: v for k, v in CLICK.items() if k != "click"},
            "says nothing of what came of it; send at least one",
        ),
    ],
)
def test_a_wrong_record_is_refused_with_what_is_wrong(record, why):
    with pytest.raises(EventError, match=why):
        taken(record)


def test_one_wrong_record_refuses_all_by_its_number():
    texts = [json.dumps(SLATE), "", json.dumps(CLICK | {"click": 7})]
    with pytest.raises(EventError, match="record 3: 'click'"):
        parse_all(texts, NOW, what="record", parse=parse)
    assert parse_all(texts[:2], NOW, parse=parse) == [SLATE]


def test_every_outcome_of_the_contract_is_one_here():
    assert set(FLAGS) < set(OUTCOMES)
    for name in OUTCOMES:
        assert taken(CLICK | {name: 1})[name] == 1
    assert {SHOWN, OUTCOME} == {SLATE["event"], CLICK["event"]}
