"""A real server with a live state: what has ended is in no feed that is asked for after the event."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from ensemble.cascade import Cascade
from ensemble.client import FeedClient
from ensemble.errors import Code, RequestError
from ensemble.network import administrator, read_key
from ensemble.steering import Steering
from supply.rules import Rules
from tests.conftest import serve
from tests.ensemble.asking import metrics, requests

pytestmark = pytest.mark.slow

RULES = Rules(forbidden_kinds={"GB": ("product",)})


@pytest.fixture(scope="module", params=[True, False], ids=["one process", "a model for each step"])
def running(request, small_release, tmp_path_factory):
    """A server, its client, its state folder."""
    state = tmp_path_factory.mktemp("live") / "state"
    folder = tmp_path_factory.mktemp("serving")
    how = {"one_process": request.param, "state": state, "rules": RULES, "watched": False}
    with serve(small_release, folder, **how) as server, FeedClient(server.grpc_url) as client:
        yield server, client, state


@pytest.fixture
def live(running):
    """As `running`, with what a halt of this machine between two tests may have ended."""
    running[0].revive()
    return running


def shown(client, request):
    reply = client.infer(request)
    return {text.decode() for text in reply["content_id"].ravel()} - {""}


def test_a_room_that_ended_is_in_no_reply_after_the_event(live, small_release):
    _, client, _ = live
    request = requests(small_release, 32, seed=4)
    before = shown(client, request)
    assert len(before) > 8
    for content in sorted(before)[:8]:
        assert client.send_events([{"event": "ended", "content": content}]) == (1, 0)
        assert content not in shown(client, request)
    client.send_events([{"event": "started", "content": c, "time": 0} for c in sorted(before)[:8]])
    assert not shown(client, request) & set(sorted(before)[:8]), "an old start reopens nothing"


def test_every_process_of_a_step_knows_of_it(live, small_release):
    """Each request may reach another process; all of them read the journal before they answer."""
    _, client, _ = live
    request = requests(small_release, 4, seed=6)
    content = sorted(shown(client, request))[0]
    client.send_events([{"event": "taken_down", "content": content}])
    assert all(content not in shown(client, request) for _ in range(20))
    client.send_events([{"event": "put_back", "content": content}])
    assert all(content in shown(client, request) for _ in range(20))


def test_the_server_answers_as_the_cascade_in_this_process_with_the_same_state(live, small_release):
    _, client, state = live
    sellers = small_release.array("seller_ids.npy")
    client.send_events([{"event": "seller_suspended", "seller": str(seller)} for seller in sellers[:5]])
    request = requests(small_release, 16, seed=8)
    expected = Cascade(small_release, steering=Steering(RULES, state))(request)
    reply = client.infer(request)
    served = np.array([text.decode() for text in reply["content_id"].ravel()], object)
    assert (served != "").any()
    np.testing.assert_array_equal(served.reshape(expected["content_id"].shape), expected["content_id"])
    plain = Cascade(small_release)(request)["content_id"]
    assert (plain != expected["content_id"]).any()


def test_a_wrong_event_is_refused_with_its_number_and_the_server_goes_on(live, small_release):
    _, client, _ = live
    with pytest.raises(RequestError, match="event 2: 'content' of 'ended' is None; send an id") as caught:
        client.send_events([{"event": "viewers", "content": "l1", "viewers": 2}, {"event": "ended"}])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert client.send_events([{"event": "ended", "content": "never heard of"}]) == (1, 1)
    assert client.send_events([]) == (0, 0)
    assert shown(client, requests(small_release, 4))


def test_while_a_step_is_loaded_anew_the_client_is_told_to_ask_again(live):
    server, client, _ = live
    with administrator(server.grpc_url, read_key(server.repository)) as triton:
        triton.unload_model("events")
        try:
            with pytest.raises(RequestError, match="ask again") as caught:
                client.send_events([{"event": "ended", "content": "l1"}])
        finally:
            triton.load_model("events")
    assert caught.value.code is Code.UNAVAILABLE
    assert client.send_events([{"event": "ended", "content": "never heard of"}]) == (1, 1)


def counted(server, model):
    """Requests that Triton says it answered."""
    of = f'nv_inference_request_success{{model="{model}"'
    return int(next(value for series, value in metrics(server).items() if series.startswith(of)))


def wait_until_counted(server, model, requests):
    deadline = time.monotonic() + 120
    while counted(server, model) < requests and time.monotonic() < deadline:
        time.sleep(0.2)


def test_requests_with_events_are_counted_by_the_server(live):
    server, client, _ = live
    before = counted(server, "events")
    for _ in range(3):
        client.send_events([{"event": "viewers", "content": "l1", "viewers": 2}])
    wait_until_counted(server, "events", before + 3)
    assert counted(server, "events") >= before + 3


def test_signs_of_life_are_requests_of_the_steps_and_none_of_the_feed(live, small_release):
    server, client, _ = live
    feeds, events = counted(server, "feed"), counted(server, "events")
    for _ in range(3):
        assert server.revive() == []
    shown(client, requests(small_release, 1))
    wait_until_counted(server, "events", events + 3)
    wait_until_counted(server, "feed", feeds + 1)
    assert counted(server, "feed") == feeds + 1
    assert counted(server, "events") >= events + 3


def test_events_of_the_command_line_reach_the_server(live, small_release):
    _, client, state = live
    request = requests(small_release, 8, seed=9)
    content = sorted(shown(client, request))[0]
    lines = json.dumps({"event": "ended", "content": content}) + "\n"
    command = [sys.executable, "-c", "from pasar.cli import main; main()", "live", "-", "--state", str(state)]
    said = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "1 events" in said.stdout
    assert content not in shown(client, request)


def test_a_reload_forgets_no_event_and_takes_new_ones(live, small_release):
    server, client, _ = live
    request = requests(small_release, 8, seed=11)
    first, second = sorted(shown(client, request))[:2]
    client.send_events([{"event": "ended", "content": first}])
    run = ["--run", str(server.repository.parent), "--url", server.grpc_url]
    command = [sys.executable, "-c", "from pasar.cli import main; main()", "reload", *run]
    said = subprocess.run(
        [*command, "--release", str(small_release.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert first not in shown(client, request)
    assert client.send_events([{"event": "ended", "content": second}]) == (1, 0)
    assert second not in shown(client, request)


def test_a_server_without_a_state_says_how_to_have_one(feed_server):
    refused = pytest.raises(RequestError, match="start it with `pasar serve --state DIR`")
    with FeedClient(feed_server.grpc_url) as client, refused as caught:
        client.send_events([{"event": "ended", "content": "l1"}])
    assert caught.value.code is Code.NOT_FOUND
