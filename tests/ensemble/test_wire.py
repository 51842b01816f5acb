"""Requests and slates come off the wire as they went on it, and what is no request is refused by name."""

import json

import numpy as np
import pytest

from ensemble.cascade import Cascade
from ensemble.client import FeedRequest, pack
from ensemble.errors import Code, RequestError
from ensemble.stages.user_state import REQUEST
from ensemble.steps import check_inputs
from ensemble.wire import read_requests, read_slates, wire_reply, write_requests, write_slates
from tests.ensemble.asking import requests, wishes


def assert_same(made, expected):
    assert set(made) == set(expected)
    for name, array in expected.items():
        assert made[name].dtype == array.dtype, name
        np.testing.assert_array_equal(made[name], array, name)


@pytest.mark.parametrize("rows", [1, 7])
def test_requests_come_off_the_wire_as_they_went_on_it(small_release, rows):
    request = requests(small_release, rows, seed=rows) | wishes(small_release, rows, seed=rows)
    texts = write_requests(request)
    assert texts.shape == (rows,)
    assert_same(check_inputs(REQUEST, read_requests(texts)), {s.name: request[s.name] for s in REQUEST})


def test_lists_of_different_lengths_are_filled():
    asked = [
        FeedRequest("ana", "BR", 10, ("a", "b"), seed=-(2**63)),
        FeedRequest("ção\n\"'", "ID", 20, ("c",)),
    ]
    read = read_requests(write_requests(pack(asked)))
    assert read["history"].tolist() == [["a", "b"], ["c", ""]]
    assert read["exclude"].shape == (2, 0)
    assert read["user_id"].tolist() == ["ana", "ção\n\"'"]
    assert read["seed"][0] == -(2**63)


def test_what_is_optional_and_says_nothing_is_not_on_the_wire():
    silent, told = (
        FeedRequest("ana", "BR", 10),
        FeedRequest("ana", "BR", 10, exclude_sellers=("s", "t"), languages=("pt-BR",), kinds=("live",)),
    )
    assert set(json.loads(write_requests(pack([silent]))[0])) == set(SOUND)
    assert json.loads(write_requests(pack([told]))[0])["exclude_sellers"] == ["s", "t"]
    assert json.loads(write_requests(pack([told]))[0])["languages"] == ["pt-BR"]
    assert json.loads(write_requests(pack([told]))[0])["kinds"] == ["live"]
    read = read_requests(write_requests(pack([silent])))
    assert read["exclude_sellers"].shape == (1, 0)
    texts = np.concatenate([write_requests(pack([one])) for one in (silent, told)])
    assert read_requests(texts)["exclude_sellers"].tolist() == [["", ""], ["s", "t"]]


def test_slates_come_off_the_wire_as_they_went_on_it(small_release):
    cascade = Cascade(small_release)
    asked = requests(small_release, 5) | {"explain": np.array([True, False, False, True, False])}
    made, user = cascade(asked), asked["user_id"]
    wired = write_slates(made, user)
    for spec in wire_reply(cascade.plan):
        assert wired[spec.name].dtype == spec.dtype
        assert wired[spec.name].shape == (5, *spec.shape)
    assert_same(read_slates(wired, user), made)
    others = np.roll(user, 1)
    assert others.tolist() != user.tolist()
    with pytest.raises(RequestError, match="another request's") as caught:
        read_slates(wired, others)
    assert caught.value.code is Code.INTERNAL


SOUND = {
    "user_id": "ana",
    "market": "ID",
    "time": 10,
    "history": ["a"],
    "exclude": [],
    "shown": [],
    "diversity": 0.5,
    "seed": 1,
    "explain": False,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time": 1.5}, "'time' of request 1 is '1.5'; send a whole number of 64 bits"),
        ({"time": True}, "'time'"),
        ({"seed": 2**63}, "'seed'"),
        ({"user_id": 7}, "'user_id' of request 1 is '7'; send text"),
        ({"market": None}, "'market'"),
        ({"history": "a"}, "'history' of request 1 is 'a'; send a list of text"),
        ({"exclude": ["a", 1]}, "'exclude'"),
        ({"shown": {}}, "'shown'"),
        ({"diversity": float("nan")}, "'diversity' of request 1 is 'nan'; send a finite number"),
        ({"diversity": "0.5"}, "'diversity'"),
        ({"diversity": 10**400}, "'diversity'"),
        ({"diversity": False}, "'diversity'"),
        ({"explain": 1}, "'explain' of request 1 is '1'; send true or false"),
        ({"exclude_sellers": "s"}, "'exclude_sellers' of request 1 is 's'; send a list of text"),
        ({"exclude_sellers": None}, "'exclude_sellers'"),
        ({"languages": ["en", 1]}, "'languages'"),
        ({"exclude": ["a"] * 10_001}, "'exclude' of request 1 has 10,001 ids; send at most 10,000"),
        ({"colour": 1}, "request 1 is not an object of user_id, market,"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name_and_row(change, said):
    with pytest.raises(RequestError) as caught:
        read_requests(np.array([json.dumps(SOUND), json.dumps(SOUND | change)], object))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "explain: it has 'colour'; send all of them, and exclude_sellers or languages"),
        ({"seed": None}, "explain: it lacks seed; send"),
        ({"seed": None, "sead": 1}, "explain: it lacks seed and has 'sead'; send"),
        ({"seed": None, "languages": ["en"]}, "explain: it lacks seed; send"),
        ({"shown": None, "seed": None, "shwon": []}, "explain: it lacks shown, seed and has 'shwon'; send"),
        ({"k" * 9000: 1}, f"it has '{'k' * 60}'; send"),
    ],
)
def test_what_a_request_lacks_and_what_it_has_beside_is_named(change, said):
    text = json.dumps({key: value for key, value in (SOUND | change).items() if value is not None})
    with pytest.raises(RequestError) as caught:
        read_requests(np.array([text], object))
    assert said in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "[" * 100_000,
        json.dumps({key: value for key, value in SOUND.items() if key != "seed"}),
        json.dumps({key: value for key, value in SOUND.items() if key != "seed"} | {"colour": 1, "sound": 2}),
        json.dumps(SOUND).replace("ana", r"\ud800"),
    ],
)
def test_what_is_no_request_is_refused(text):
    with pytest.raises(RequestError, match="request 0 is not") as caught:
        read_requests(np.array([text], object))
    assert caught.value.code is Code.INVALID_ARGUMENT
