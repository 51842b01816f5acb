"""Events are checked when they come in, and a wrong one says why."""

import json

import pytest

from supply.events import AHEAD_S, EVENT_KINDS, TAKEN, EventError, parse, parse_all

NOW = 1_800_000_000.7
SOUND = {
    "started": {"content": "l1"},
    "ended": {"content": "l1"},
    "viewers": {"content": "l1", "viewers": 12},
    "showing": {"content": "l1", "product": "p1"},
    "stock": {"content": "p1", "stock": 0},
    "taken_down": {"content": "v1"},
    "put_back": {"content": "v1"},
    "seller_suspended": {"seller": "s1"},
    "seller_restored": {"seller": "s1"},
}


@pytest.mark.parametrize("name", EVENT_KINDS)
def test_an_event_keeps_what_it_says_and_happened_now_unless_it_says_when(name):
    said = {"event": name, **SOUND[name]}
    assert parse(json.dumps(said), NOW) == said | {"time": int(NOW)}
    assert parse(json.dumps(said | {"time": 5}).encode(), NOW) == said | {"time": 5}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        (b"\xff", "not JSON"),
        ("[1]", "is no object"),
        ('{"content": "l1"}', "'event' is None; use one of started, ended"),
        ('{"event": "closed", "content": "l1"}', "'event' is 'closed'; use one of"),
        ('{"event": "ended"}', "'content' of 'ended' is None; send an id, as text"),
        ('{"event": "ended", "content": 17}', "'content' of 'ended' is 17; send an id"),
        ('{"event": "ended", "content": ""}', "send an id"),
        (
            r'{"event": "ended", "content": "l\ud800"}',
            r"'content' of 'ended' is 'l\\ud800', half a character",
        ),
        (r'{"event": "showing", "content": "l1", "product": "\udc00"}', "'product' of 'showing'.*send an id"),
        # Arrays of ids would take it for that of l1.
        (r'{"event": "ended", "content": "l1\u0000"}', "an id has 1 to 256 characters without NUL"),
        (f'{{"event": "seller_suspended", "seller": "{"s" * 257}"}}', r"'s+\.\.\.; an id has 1 to 256 char"),
        ("[" * 100_000, "JSON nested too deeply; send one flat object a line"),
        ('{"event":' * 100_000, "JSON nested too deeply"),
        ('{"event": "ended", "seller": "s1"}', "'ended' has no 'seller'; it has event, content, time"),
        ('{"event": "ended", "content": "l1", "viewers": 3}', "has no 'viewers'"),
        # What is long does not fit into the status of a gRPC call, of 8 KiB.
        (f'{{"event": "ended", "content": "l1", "{"k" * 9000}": 3}}', r"has no 'k+\.\.\.; it has event"),
        (
            '{"event": "viewers", "content": "l1"}',
            "event 'viewers' has no value 'viewers'; send event, content, time, viewers",
        ),
        ('{"event": "viewers", "content": "l1", "viewers": -1}', "send a whole number from 0"),
        ('{"event": "viewers", "content": "l1", "viewers": 1.5}', "send a whole number"),
        ('{"event": "viewers", "content": "l1", "viewers": true}', "send a whole number"),
        ('{"event": "stock", "content": "p1", "stock": 9999999999}', "to 2147483647"),
        ('{"event": "showing", "content": "l1", "product": 3}', "'product' of 'showing' is 3; send an id"),
        ('{"event": "ended", "content": "l1", "time": "now"}', "'time' of 'ended' is 'now'"),
        ('{"event": "ended", "content": "l1", "time": 1800000000000}', "'time' of 'ended'"),
    ],
)
def test_a_wrong_event_is_refused_with_what_is_wrong(text, why):
    with pytest.raises(EventError, match=why):
        parse(text, NOW)


def test_an_event_of_the_future_remembers_when_it_was_taken_in_and_a_far_one_is_refused():
    ahead = {"event": "started", "content": "l1", "time": int(NOW) + AHEAD_S}
    assert parse(json.dumps(ahead), NOW) == ahead | {TAKEN: int(NOW)}
    with pytest.raises(EventError, match="'started' has no 'taken'"):
        parse(json.dumps(ahead | {TAKEN: 5}), NOW)
    with pytest.raises(EventError, match="'time'"):
        parse(json.dumps(ahead | {"time": ahead["time"] + 1}), NOW)


def test_one_wrong_line_refuses_all_by_its_number_and_empty_ones_count_but_say_nothing():
    lines = ['{"event": "ended", "content": "l1"}', "", "  \n", '{"event": "ended", "content": "l2"}']
    assert [event["content"] for event in parse_all(lines, NOW)] == ["l1", "l2"]
    with pytest.raises(EventError, match=r"^line 15: not JSON"):
        parse_all([*lines, "{"], NOW, first=11)
