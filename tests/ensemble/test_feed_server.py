"""The real Triton server of the small release: it answers as the cascade in this process does."""

import json
import os
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest

from ensemble.cascade import Cascade
from ensemble.client import FeedClient, FeedRequest
from ensemble.errors import Code, RequestError
from ensemble.repository import models
from ensemble.split import SplitClient
from tests.ensemble import tls
from tests.ensemble.asking import BROKEN, metrics, requests, wishes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cascade(small_release):
    return Cascade(small_release)


@pytest.fixture(params=["feed_server", "split_feed_server"], ids=["in one process", "each step a model"])
def client(request):
    with FeedClient(request.getfixturevalue(request.param).grpc_url) as connected:
        yield connected


def decoded(array):
    """Text as it comes over the wire, as `str`."""
    if array.dtype != object:
        return array
    text = np.empty(array.size, object)
    text[:] = [item.decode() for item in array.ravel()]
    return text.reshape(array.shape)


def assert_same(reply, expected):
    assert set(reply) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(decoded(reply[name]), array, name)


def test_the_steps_are_models_as_asked(feed_server, split_feed_server):
    assert models(feed_server.repository) == ["cascade", "feed"]
    each = ["feed", "query", "ranking", "reordering", "retrieval", "user_state"]
    assert models(split_feed_server.repository) == each


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return tls.Authority(tmp_path_factory.mktemp("authority"))


def test_over_tls_the_feed_is_the_same(feed_server, cascade, small_release, authority):
    request = requests(small_release, 3)
    trusted = grpc.ssl_channel_credentials(authority.file.read_bytes())
    with (
        tls.proxy(feed_server.grpc_url, authority) as url,
        FeedClient(f"grpcs://{url}", credentials=trusted) as client,
    ):
        assert_same(client.infer(request), cascade(request))


def test_a_server_of_an_unknown_authority_is_not_asked(feed_server, authority):
    with tls.proxy(feed_server.grpc_url, authority) as url, FeedClient(f"grpcs://{url}", 10) as client:
        with pytest.raises(RequestError, match=r"(?i)certificate|ssl|handshake") as caught:
            _ = client.tasks
        assert caught.value.code is Code.UNAVAILABLE


def test_a_command_asks_over_tls(feed_server, authority):
    trusted = os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(authority.file)}
    with tls.proxy(feed_server.grpc_url, authority) as url:
        asked = ["feed", "--market", "ID", "--user", "u000001", "--url", f"grpcs://{url}", "--json"]
        said = subprocess.run(
            [sys.executable, "-c", "from pasar.cli import main; main()", *asked],
            env=trusted,
            capture_output=True,
            text=True,
            check=False,
        )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)[0]["items"]


def test_a_client_proves_who_it_is(feed_server, authority):
    root = authority.file.read_bytes()
    certificate, key = (file.read_bytes() for file in authority.issue("shop"))

    asked = [FeedRequest(f"u{number}", "ID", 1_773_000_000) for number in range(4)]
    with tls.proxy(feed_server.grpc_url, authority, known_clients=True) as url:
        address = f"grpcs://{url}"
        with FeedClient(address, 10, grpc.ssl_channel_credentials(root)) as stranger:
            with pytest.raises(RequestError) as caught:
                stranger.feed(asked)
            assert caught.value.code is Code.UNAVAILABLE
        known = grpc.ssl_channel_credentials(root, key, certificate)
        with SplitClient({address: 1}, "of one", 10, known) as client:
            assert all(slate.items for slate in client.feed(asked))


def told(server):
    """What the metrics port tells of the feed, by series."""
    return {of: value for of, value in metrics(server).items() if of.startswith("pasar_")}


def total(series, name):
    return sum(value for of, value in series.items() if of.startswith(f"{name}{{"))


@pytest.mark.parametrize(
    "how", ["feed_server", "split_feed_server"], ids=["in one process", "each step a model"]
)
def test_the_metrics_port_tells_what_was_served(request, small_release, cascade, how):
    server = request.getfixturevalue(how)
    asked = requests(small_release, 16, seed=9)
    asked["exclude"] = np.tile(small_release.array("text_content_id.npy").astype(object), (16, 1))
    asked["exclude"][8:] = ""
    expected = cascade(asked)
    filled = expected["content_id"] != ""
    wanted = {
        "pasar_slates_total": 16,
        "pasar_empty_places_total": (~filled).sum(),
        "pasar_places_total": filled.sum(),
        "pasar_reasons_total": filled.sum(),
        "pasar_strangers_total": (cascade.user_state.users(asked["user_id"]) < 0).sum(),
        "pasar_expected_value_usd_total": np.abs(expected["slate_value"]).sum(),
        "pasar_expected_outcomes_total": expected["slate_probabilities"].sum(),
        "pasar_refused_total": 1,
    }
    before, seen = told(server), {}
    while before != seen:  # processes still tell what tests before this one were served
        time.sleep(5.5)
        before, seen = told(server), before
    with FeedClient(server.grpc_url) as connected:
        for rows in range(16):
            connected.infer({name: array[rows : rows + 1] for name, array in asked.items()})
        with pytest.raises(RequestError):
            connected.infer({**asked, "market": np.full(16, "ZZ", object)})
    deadline, grown = time.monotonic() + 120, {}
    while time.monotonic() < deadline:
        grown = {of: value - before[of] for of, value in told(server).items()}
        if all(total(grown, name) > 0.9999 * amount for name, amount in wanted.items()):
            break
        time.sleep(0.2)
    assert {name: total(grown, name) for name in wanted} == pytest.approx(wanted, rel=1e-4)
    for market in cascade.plan.markets:
        here = asked["market"] == market
        assert grown[f'pasar_slates_total{{market="{market}"}}'] == here.sum()
        assert grown[f'pasar_empty_places_total{{market="{market}"}}'] == (~filled[here]).sum()
    step = "cascade" if how == "feed_server" else "user_state"
    assert grown[f'pasar_refused_total{{code="NOT_FOUND",step="{step}"}}'] == 1


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_a_reply_equals_the_cascade_in_this_process_tensor_for_tensor(client, cascade, small_release, rows):
    request = requests(small_release, rows, seed=rows)
    assert rows == 1 or len(set(request["market"])) > 1
    assert_same(client.infer(request), cascade(request))
    request |= wishes(small_release, rows, seed=rows)
    assert_same(client.infer(request), cascade(request))


def test_empty_histories_and_exclusions_travel(client, cascade, small_release):
    request = requests(small_release, 3)
    request |= {"history": np.empty((3, 0), object), "exclude": np.empty((3, 0), object)}
    assert_same(client.infer(request), cascade(request))


def test_ten_thousand_exclusions_are_obeyed(client, cascade, small_release):
    texts = small_release.array("text_content_id.npy").astype(object)
    exclude = np.concatenate([texts[::2], [f"unknown-{i}" for i in range(10_000 - len(texts[::2]))]])
    request = requests(small_release, 2) | {"exclude": np.tile(exclude.astype(object), (2, 1))}
    reply = client.infer(request)
    assert_same(reply, cascade(request))
    served = decoded(reply["content_id"])
    assert (served != "").all()
    assert not set(served.ravel()) & set(exclude)


def test_everything_excluded_gives_an_empty_slate(client, small_release):
    texts = small_release.array("text_content_id.npy").astype(object)
    reply = client.infer(requests(small_release, 2) | {"exclude": np.tile(texts, (2, 1))})
    assert (decoded(reply["content_id"]) == "").all()


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_request_gets_a_typed_error_and_the_next_one_its_feed(client, cascade, small_release, wrong):
    broken, code = BROKEN[wrong]
    request = requests(small_release, 3)
    with pytest.raises(RequestError) as caught:
        client.infer(broken(request))
    assert caught.value.code is code, caught.value.message
    assert "/work" not in caught.value.message
    assert "Traceback" not in caught.value.message
    assert_same(client.infer(request), cascade(request))


def test_more_rows_than_a_batch_may_have_are_refused_with_the_limit(client, small_release):
    with pytest.raises(RequestError, match="64"):
        client.infer(requests(small_release, 65))
