"""The feedback step: what clients tell of their slates is in the log, or refused with its number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ensemble.client import FeedClient, FeedRequest, Item, Slate, outcome, shown
from ensemble.errors import Code, RequestError
from ensemble.stages import build
from feedback.extend import extend
from feedback.log import FeedbackLog
from supply.journal import Tail
from tests.conftest import serve
from tests.ensemble import synthetic


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))(5)


def item(content: str, propensity: float = 1.0) -> Item:
    return Item(content, ("two-tower",), 1, 0.5, {"click": 0.1}, 0.2, "highest value", propensity)


REQUEST = FeedRequest("u1", "ID", 1_773_619_073)
SLATE = Slate((item("v1"), item("v2", 0.25), item("v3")))


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Of a Python that takes names of files for ASCII, as the one within Triton does."""


def test_a_log_in_a_folder_of_any_name_is_kept_by_the_python_within_triton(release, tmp_path):
    program = (
        "import json, os, sys; from ensemble.stages import build; from ensemble.release import Release\n"
        "assert sys.getfilesystemencoding() == 'ascii'\n"
        "made = Release.open(sys.argv[1])\n"
        "for place in json.load(sys.stdin): build('events', made, state=place + '/s', feedback=place + '/l')"
    )
    folders = [str(tmp_path / name) for name in ("łódź 1", "用户")]
    command, sent = [sys.executable, "-c", program, str(release.path)], json.dumps(folders)
    subprocess.run(command, input=sent, env=os.environ | ASCII, text=True, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"łódź 1", "用户"}
    assert all((Path(folder) / "s" / "journal").is_file() for folder in folders)


def everything(folder) -> list[dict]:
    log = FeedbackLog(folder)
    return [record for hour in log.hours() for record in log.read(hour)[0]]


def table(*rows):
    made = np.full((len(rows), max(map(len, rows))), "", object)
    for row, said in enumerate(rows):
        made[row, : len(said)] = [json.dumps(record) for record in said]
    return made


def test_a_slate_is_told_of_as_it_came_into_view():
    whole = shown(7, REQUEST, SLATE, release="nightly")
    assert whole["items"] == [
        {"content": "v1", "position": 0, "propensity": 1.0},
        {"content": "v2", "position": 1, "propensity": 0.25},
        {"content": "v3", "position": 2, "propensity": 1.0},
    ]
    assert {key: whole[key] for key in ("request", "user", "market", "time", "release")} == {
        "request": 7,
        "user": "u1",
        "market": "ID",
        "time": 1_773_619_073,
        "release": "nightly",
    }
    part = shown(7, REQUEST, SLATE, seen=range(1, 2))
    assert part["items"] == whole["items"][1:2]
    assert "release" not in part


def test_requests_are_written_in_order_and_counted_each_for_itself(release, tmp_path):
    step = build("feedback", release, feedback=str(tmp_path / "log"))
    first = [shown(1, REQUEST, SLATE), outcome(1, REQUEST, "v1", 1_773_619_080, click=1)]
    second = [outcome(2, REQUEST, "v1", 1_773_619_080, watch_s=2.5)]
    assert step(record=table(first, second, []))["written"].tolist() == [2, 1, 0]
    assert everything(tmp_path / "log") == [*first, *second]


def test_one_wrong_record_refuses_its_request_and_nothing_is_written(release, tmp_path):
    step = build("feedback", release, feedback=str(tmp_path / "log"))
    wrong = outcome(1, REQUEST, "v1", click=3)
    with pytest.raises(RequestError, match="record 2: 'click' of 'outcome' is 3") as caught:
        step(record=table([shown(1, REQUEST, SLATE), wrong]))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert everything(tmp_path / "log") == []


def test_a_log_that_cannot_be_written_says_to_send_again(release, tmp_path):
    step = build("feedback", release, feedback=str(tmp_path / "log"))
    (tmp_path / "log").rmdir()
    with pytest.raises(
        RequestError, match=r"cannot be written: [^;]*; what is sent again counts once$"
    ) as caught:
        step(record=table([shown(1, REQUEST, SLATE)]))
    assert caught.value.code is Code.UNAVAILABLE


def test_without_a_folder_there_is_no_such_step(release):
    with pytest.raises(ValueError, match="needs a folder for its log"):
        build("feedback", release)


def test_events_are_remembered_where_there_is_a_log(release, tmp_path):
    step = build("events", release, state=str(tmp_path / "state"), feedback=str(tmp_path / "log"))
    said = [{"event": "viewers", "content": "l1", "time": 3, "viewers": 9}]
    step(event=table(said))
    assert everything(tmp_path / "log") == said


def test_what_decides_about_feeds_holds_even_where_the_log_cannot_be_written(release, tmp_path):
    step = build("events", release, state=str(tmp_path / "state"), feedback=str(tmp_path / "log"))
    (tmp_path / "log").rmdir()
    said = [{"event": "taken_down", "content": "v1", "time": 3}]
    with pytest.raises(RequestError, match="the events hold, but the feedback log cannot be") as caught:
        step(event=table(said))
    assert caught.value.code is Code.UNAVAILABLE
    assert Tail(tmp_path / "state" / "journal").read()[0] == said


@pytest.fixture(scope="module", params=[True, False], ids=["one process", "a model for each step"])
def told(request, small_release, tmp_path_factory):
    """A server with a feedback log, its client, the log's folder."""
    place = tmp_path_factory.mktemp("feedback")
    options = {"one_process": request.param, "state": place / "state", "feedback": place / "log"}
    with (
        serve(small_release, tmp_path_factory.mktemp("serving"), **options) as server,
        FeedClient(server.grpc_url) as client,
    ):
        yield server, client, place / "log"


@pytest.mark.slow
def test_from_slates_of_a_server_to_the_next_data_set(told, small_build, small_world_dataset, tmp_path):
    _, client, folder = told
    known = len(everything(folder)) if folder.exists() else 0
    examples = small_build.built.data.examples
    people = examples.users.head(20)
    requests = [
        FeedRequest(user, market, examples.end + 60 + k)
        for k, (user, market) in enumerate(zip(people["user_id"], people["market"]))
    ]
    slates = client.feed([*requests, FeedRequest("somebody new", "GB", examples.end + 99)])
    requests.append(FeedRequest("somebody new", "GB", examples.end + 99))
    records = []
    for k, (request, slate) in enumerate(zip(requests, slates)):
        records.append(shown(k, request, slate, seen=range(5), release=client.release))
        came = {"click": 1, "watch_s": np.float32(30.5)}
        records.append(outcome(np.int64(k), request, slate.items[0].content, request.time + 5, **came))
    assert client.send_feedback(records) == len(records)
    assert client.send_feedback([]) == 0
    assert client.send_feedback([shown(99, requests[0], slates[0], seen=())]) == 1
    client.send_events(
        [{"event": "viewers", "content": slates[0].items[0].content, "time": examples.end + 5, "viewers": 3}]
    )
    assert everything(folder)[known:][: len(records)] == records
    made, taken = extend(small_world_dataset, folder, tmp_path / "next", wait_s=60, until=examples.end + 1000)
    assert (taken.rows, taken.people, taken.moments, taken.remarks()) == (21 * 5, 1, 1, [])
    rows = made.impressions().tail(21 * 5).sort_values(["request_id", "position"])
    assert rows["content_id"].tolist() == [i.content for slate in slates for i in slate.items[:5]]
    np.testing.assert_array_equal(
        rows["propensity"].to_numpy(), np.float32([i.propensity for s in slates for i in s.items[:5]])
    )
    assert rows["click"].tolist() == [1, 0, 0, 0, 0] * 21
    assert rows["watch_s"].tolist() == [30.5, 0, 0, 0, 0] * 21
    assert rows["market"].tolist() == [request.market for request in requests for _ in range(5)]


@pytest.mark.slow
def test_a_wrong_record_is_refused_with_its_number_and_the_server_goes_on(told):
    _, client, _ = told
    with pytest.raises(RequestError, match="record 1: 'market' of 'shown' is 'Narnia'") as caught:
        client.send_feedback([shown(1, FeedRequest("u1", "Narnia", 5), SLATE)])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert client.send_feedback([shown(1, REQUEST, SLATE)]) == 1


@pytest.mark.slow
def test_feedback_is_taken_in_after_a_reload(told, small_release):
    server, client, folder = told
    run = ["--run", str(server.repository.parent), "--url", server.grpc_url]
    command = [sys.executable, "-c", "from pasar.cli import main; main()", "reload", *run]
    said = subprocess.run([*command, "--release", str(small_release.path)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    record = outcome(77, REQUEST, "v1", 1_773_619_080, order=1)
    assert client.send_feedback([record]) == 1
    assert record in everything(folder)


@pytest.mark.parametrize("other", ["run", "state"])
def test_a_log_in_the_folder_of_something_else_is_refused(small_release, tmp_path, other):
    places = {"run": tmp_path / "run", "state": tmp_path / "state"}
    with (
        pytest.raises(ValueError, match="give the feedback log its own"),
        serve(
            small_release,
            places["run"],
            one_process=True,
            state=places["state"],
            feedback=places[other],
        ),
    ):
        raise AssertionError("it is served")


@pytest.mark.slow
def test_a_server_without_a_log_says_how_to_have_one(feed_server):
    refused = pytest.raises(RequestError, match="start it with `pasar serve --feedback DIR`")
    with FeedClient(feed_server.grpc_url) as client, refused as caught:
        client.send_feedback([shown(1, REQUEST, SLATE)])
    assert caught.value.code is Code.NOT_FOUND
