import numpy as np
import pytest

import ensemble.split
from ensemble.client import FeedRequest, Item, Slate, outcome, shown
from ensemble.errors import Code, RequestError
from ensemble.split import SplitClient

OLD, NEW = "127.0.0.1:1", "127.0.0.1:2"
USERS = [f"u{number}" for number in range(20_000)]


class Server:
    """What a `FeedClient` would be, which shows each user one content and remembers what it is told."""

    def __init__(self, url, timeout_s):
        self.url, self.asked, self.told, self.release = url, [], [], f"release of {url}"

    def feed(self, requests):
        if any(request.market == "ZZ" for request in requests):
            raise RequestError(Code.NOT_FOUND, "unknown market 'ZZ' at row 0")
        self.asked.append([request.user for request in requests])
        return [
            Slate((Item(f"{self.url} {request.user}", ("trending",), 1, 0.5, {}, 1.0, "", 1.0),))
            for request in requests
        ]

    def send_feedback(self, told):
        self.told += told
        return len(told)

    def close(self):
        self.asked = None


@pytest.fixture
def servers(monkeypatch):
    made = {}
    monkeypatch.setattr(
        ensemble.split, "FeedClient", lambda url, timeout_s, _: made.setdefault(url, Server(url, timeout_s))
    )
    return made


def test_shares_hold_and_experiments_draw_independently():
    one, other = SplitClient({OLD: 3, NEW: 1}, "colours"), SplitClient({OLD: 3, NEW: 1}, "sizes")
    first, second = (client.sides(USERS) for client in (one, other))
    assert first.mean() == pytest.approx(0.25, abs=0.01)
    assert second[first == 1].mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(SplitClient({OLD: 0.75, NEW: 0.25}, "colours").sides(USERS), first)


def test_a_server_that_gets_more_keeps_whom_it_has():
    before = SplitClient({OLD: 9, NEW: 1}, "x").sides(USERS)
    after = SplitClient({OLD: 5, NEW: 5}, "x").sides(USERS)
    assert (after >= before).all()
    assert (after > before).mean() == pytest.approx(0.4, abs=0.015)


def test_who_goes_where_never_changes():
    """People stay where they are from one version of this code to the next."""
    sides = SplitClient({OLD: 1, NEW: 1}, "colours").sides([f"u{n}" for n in range(16)])
    assert "".join(map(str, sides)) == "1000111011110101"


def test_each_person_is_asked_for_and_told_of_at_one_server(servers):
    requests = [FeedRequest(user, "ID", 1) for user in USERS[:60]]
    with SplitClient({OLD: 1, NEW: 1}, "x") as client:
        sides = client.sides([request.user for request in requests])
        slates = client.feed(requests)
        expected = [f"{client.urls[side]} {request.user}" for side, request in zip(sides, requests)]
        assert [slate.items[0].content for slate in slates] == expected
        assert [len(servers[url].asked) for url in (OLD, NEW)] == [1, 1]
        told = [
            record
            for request, slate in zip(requests, slates)
            for record in (
                shown(1, request, slate, release=client.client(request.user).release),
                outcome(1, request, slate.items[0].content, at=2, click=1),
            )
        ]
        assert client.send_feedback(told) == 120
        for url, server in servers.items():
            assert {record["release"] for record in server.told if "release" in record} == {server.release}
            assert all(place["content"].startswith(url) for r in server.told for place in r.get("items", ()))
    assert [server.asked for server in servers.values()] == [None, None]


def test_a_record_that_is_wrong_is_told_by_its_number_among_all_and_nothing_is_sent(servers):
    told = [outcome(1, FeedRequest(user, "ID", 1), "v1", at=2, click=1) for user in USERS[:8]]
    with SplitClient({OLD: 1, NEW: 1}, "x") as client:
        for number, wrong in ((6, told[6] | {"click": 7}), (3, {"event": "outcome"})):
            with pytest.raises(RequestError, match=f"^record {number + 1}: ") as caught:
                client.send_feedback([*told[:number], wrong, *told[number + 1 :]])
            assert caught.value.code is Code.INVALID_ARGUMENT
        assert not servers[OLD].told + servers[NEW].told
        assert client.send_feedback([]) == 0


def test_what_is_no_request_is_told_by_its_number_among_all_and_a_refusal_by_whose_it_is(servers):
    requests = [FeedRequest(user, "ID", 1) for user in USERS[:8]]
    with SplitClient({OLD: 1, NEW: 1}, "x") as client:
        with pytest.raises(RequestError, match=r"'time' of request 7 is 1\.5"):
            client.feed([*requests[:7], FeedRequest(USERS[7], "ID", 1.5)])
        assert not servers[OLD].asked
        user = USERS[client.sides(USERS[:8]).tolist().index(1)]
        refused = f"^{NEW} says of its part: unknown market 'ZZ' at row 0$"
        with pytest.raises(RequestError, match=refused) as caught:
            client.feed([FeedRequest(user, "ZZ", 1)])
        assert caught.value.code is Code.NOT_FOUND


def test_nobody_at_all_is_refused_as_a_server_would():
    with SplitClient({OLD: 1}, "x") as client, pytest.raises(RequestError, match="send at least") as caught:
        client.feed([])
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("shares", [{}, {OLD: 0}, {OLD: -1, NEW: 2}, {OLD: float("nan")}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="give each server a positive part of all people"):
        SplitClient(shares, "x")
