"""The client packs requests, reads replies, and turns every failure into a code and one line."""

import contextlib
import socket
import threading
import time

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from ensemble.cascade import Cascade
from ensemble.client import FeedClient, FeedRequest, Slate, connect, pack, unpack
from ensemble.errors import Code, RequestError
from ensemble.stages.reordering import Reason
from ensemble.stages.user_state import REQUEST
from ensemble.steps import check_inputs
from ensemble.wire import _NUMBERS


def test_requests_are_packed_as_the_cascade_reads_them():
    packed = pack(
        [
            FeedRequest("ana", "BR", 10, ("a", "b"), (), ("d", "d"), 0.5, seed=3),
            FeedRequest("budi", "ID", 20, (), ("c",), diversity=0.0),
        ]
    )
    assert packed["history"].tolist() == [["a", "b"], ["", ""]]
    assert packed["exclude"].tolist() == [[""], ["c"]]
    assert packed["shown"].tolist() == [["d", "d"], ["", ""]]
    assert packed["seed"][0] == 3
    assert packed["time"].tolist() == [10, 20]
    assert packed["diversity"].tolist() == [0.5, 0.0]
    check_inputs(REQUEST, packed)


def test_a_seed_is_the_same_for_the_same_request_and_another_for_another():
    asked = [FeedRequest("ana", "BR", 10), FeedRequest("ana", "BR", 11), FeedRequest("budi", "BR", 10)]
    seeds = pack(asked)["seed"].tolist()
    assert seeds == pack(asked)["seed"].tolist()
    assert len(set(seeds)) == 3


def test_requests_without_a_past_are_packed_with_lists_of_no_width():
    packed = pack([FeedRequest("ana", "BR", 10)])
    assert packed["history"].shape == packed["exclude"].shape == (1, 0)
    check_inputs(REQUEST, packed)


def test_places_without_an_item_are_left_out_of_a_slate():
    reply = {
        "content_id": np.array([[b"a", b"b", b""], ["", "", ""]], object),
        "slate_channel": np.array([[1, 3, 0], [0, 0, 0]]),
        "slate_reason": np.array([[0, 3, 0], [0, 0, 0]]),
        "slate_candidate_rank": np.array([[4, 1, 0], [0, 0, 0]]),
        "slate_retrieval_score": np.zeros((2, 3)),
        "slate_probabilities": np.tile(np.array([0.25, 0.75]), (2, 3, 1)),
        "slate_value": np.array([[2.0, 1.0, 0], [0, 0, 0]]),
        "slate_propensity": np.array([[1.0, 0.25, 0], [0, 0, 0]]),
        "explanation": np.array([[b""], [b""]], object),
    }
    full, empty = unpack(reply, ("click", "order"))
    assert [item.content for item in full.items] == ["a", "b"]
    assert [item.channels for item in full.items] == [("two-tower",), ("two-tower", "trending")]
    assert [item.candidate_rank for item in full.items] == [4, 1]
    assert full.items[0].probabilities == {"click": 0.25, "order": 0.75}
    assert [item.value for item in full.items] == [2.0, 1.0]
    assert [item.reason for item in full.items] == [Reason.VALUE.text, Reason.SELLER_CAP.text]
    assert [item.propensity for item in full.items] == [1.0, 0.25]
    assert empty == Slate(())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2**64}, "'seed' of request 1 is 18446744073709551616; send a whole number of 64 bits"),
        ({"time": -(10**30)}, f"'time' of request 1 is -1{'0' * 30}; send a whole number of 64 bits"),
        ({"time": 1.5}, "'time' of request 1 is 1.5; send a whole number of 64 bits"),
        ({"time": "5"}, "'time' of request 1 is '5'; send a whole number of 64 bits"),
        ({"exclude": "v1"}, "'exclude' of request 1 is the text 'v1'; send a list, ['v1']"),
        ({"exclude": b"v1"}, "'exclude' of request 1 is b'v1'; send a list of text"),
        ({"history": None}, "'history' of request 1 is None; send a list of text"),
        ({"history": ["v1", 7]}, "'history' of request 1 is ['v1', 7]; send a list of text"),
        ({"shown": (text for text in "ab")}, "'shown' of request 1 is <generator"),
        ({"user": np.int64(7)}, "'user' of request 1 is 7; send text"),
        ({"market": None}, "'market' of request 1 is None; send text"),
        ({"diversity": "0.5"}, "'diversity' of request 1 is '0.5'; send 0 to 1"),
        ({"diversity": 10**400}, f"'diversity' of request 1 is 1{'0' * 59}; send 0 to 1"),
        ({"diversity": float("nan")}, "'diversity' of request 1 is nan; send 0 to 1"),
        ({"explain": "no"}, "'explain' of request 1 is 'no'; send True or False"),
        ({"user": "\ud800"}, r"holds '\ud800', half a character; send whole ones"),
        ({"history": ["v1", "v\udfff"]}, r"holds '\udfff', half a character"),
    ],
)
def test_what_no_message_can_hold_is_refused_before_it_is_sent(change, said):
    sound = {"user": "u1", "market": "ID", "time": 1}
    with FeedClient("127.0.0.1:1") as client, pytest.raises(RequestError) as caught:
        client.feed([FeedRequest(**sound), FeedRequest(**sound | change)])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert said in caught.value.message


def test_ids_may_come_as_any_texts_side_by_side():
    lists = ["a", "b"], ("a", "b"), np.array(["a", "b"]), dict.fromkeys("ab"), dict.fromkeys("ab").keys()
    packed = pack([FeedRequest("u1", "ID", 1, exclude=ids) for ids in (*lists, {"b"})])
    assert packed["exclude"].tolist() == [["a", "b"]] * len(lists) + [["b", ""]]


def test_no_request_at_all_is_refused_before_it_is_sent():
    with (
        FeedClient("127.0.0.1:1") as client,
        pytest.raises(RequestError, match="send at least one") as caught,
    ):
        client.feed([])
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_where_no_server_answers_the_code_says_unavailable():
    with FeedClient("127.0.0.1:1", timeout_s=2) as client, pytest.raises(RequestError) as caught:
        client.infer(pack([FeedRequest("ana", "BR", 10)]))
    assert caught.value.code is Code.UNAVAILABLE


def test_a_server_that_never_answers_is_given_up_in_time():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with (
            FeedClient(f"127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.5) as client,
            pytest.raises(RequestError) as caught,
        ):
            client.infer(pack([FeedRequest("ana", "BR", 10)]))
    assert caught.value.code is Code.UNAVAILABLE
    assert "no reply within 0.5 s" in caught.value.message


def test_a_server_that_is_away_is_looked_for_each_second_so_it_is_found_when_it_is_back():
    looked = []

    def turn_away(door):
        with contextlib.suppress(OSError):
            while True:
                door.accept()[0].close()
                looked.append(time.monotonic())

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=turn_away, args=(door,), daemon=True).start()
        with FeedClient(f"127.0.0.1:{door.getsockname()[1]}") as client:
            while len(looked) < 6:
                with pytest.raises(RequestError):
                    _ = client.release
                time.sleep(0.05)
    # gRPC alone looks after 1, 3, 5, 9, 16, … seconds.
    assert np.median(np.diff(looked)) < 2


def test_connecting_says_what_to_do_where_no_server_answers():
    with pytest.raises(RequestError) as caught, connect("127.0.0.1:1"):
        pass
    assert caught.value.message.startswith("no feed is served at 127.0.0.1:1 (")
    assert caught.value.message.endswith("start `pasar serve`, or give --url")
    assert "\n" not in caught.value.message


def test_a_dtype_that_no_server_reads_is_refused_before_it_is_sent():
    request = pack([FeedRequest("ana", "BR", 10)]) | {"time": np.array([1], "datetime64[s]")}
    with FeedClient("127.0.0.1:1") as client, pytest.raises(RequestError, match="'time' has dtype datetime"):
        client.infer(request)


def test_a_reply_that_lacks_a_tensor_is_an_error_of_the_server(monkeypatch):
    reply = service_pb2.ModelInferResponse()
    reply.outputs.add(name="slate", datatype="FP32", shape=[1, 1, 6])
    reply.raw_output_contents.append(bytes(24))
    monkeypatch.setattr(FeedClient, "_ask", lambda client, call, message: reply)
    with FeedClient("127.0.0.1:1") as client, pytest.raises(RequestError, match="lacks text;") as caught:
        client.infer(pack([FeedRequest("ana", "BR", 10)]))
    assert caught.value.code is Code.INTERNAL


class Unavailable(grpc.RpcError):
    """What gRPC raises where a server is away, or refuses for now."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return self.args[0]


def test_a_server_knows_how_long_a_client_waits_and_may_be_too_busy(monkeypatch):
    sent = []

    def infer(message, timeout):
        sent.append(message)
        raise Unavailable("in ensemble 'feed', Request timeout expired")

    with FeedClient("127.0.0.1:1", timeout_s=0.8) as client:
        monkeypatch.setattr(client._server, "ModelInfer", infer)
        with pytest.raises(RequestError, match="the server is too busy: the request waited") as caught:
            client.infer(pack([FeedRequest("ana", "BR", 10)]))
    assert caught.value.code is Code.UNAVAILABLE
    assert sent[0].parameters["timeout"].int64_param == 400_000


def test_who_sends_more_at_once_than_a_server_takes_is_told_how_many_it_takes(monkeypatch):
    def infer(message, timeout):
        raise Unavailable("[request id: <id_unknown>] inference request batch-size must be <= 64 for 'feed'")

    with FeedClient("127.0.0.1:1") as client:
        monkeypatch.setattr(client._server, "ModelInfer", infer)
        with pytest.raises(RequestError, match=r"^the server takes 64 requests at once; send") as caught:
            client.infer(pack([FeedRequest("ana", "BR", 10)] * 65))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_after_a_server_was_away_its_tasks_are_asked_for_again(monkeypatch):
    served = ["click,order"]

    def configuration(message, timeout):
        if not served:
            raise Unavailable("connection refused")
        reply = service_pb2.ModelConfigResponse()
        reply.config.parameters["tasks"].string_value = served[0]
        return reply

    with FeedClient("127.0.0.1:1") as client:
        monkeypatch.setattr(client._server, "ModelConfig", configuration)
        assert client.tasks == ("click", "order")
        served.clear()
        with pytest.raises(RequestError, match="refused"):
            _ = client.release
        served.append("order,click")
        assert client.tasks == ("order", "click")


def test_a_server_that_came_while_a_client_was_idle_and_learns_more_is_asked_for_its_tasks(monkeypatch):
    served, numbers = ["click,order"], np.zeros((1, 1), np.float32)
    reply = {
        "content_id": np.array([[b"v1"]], object),
        "slate_probabilities": np.array([[[0.25, 0.5, 0.75]]], np.float32),
        "explanation": np.array([[b""]], object),
        **dict.fromkeys(_NUMBERS, numbers),
    }

    def configuration(message, timeout):
        said = service_pb2.ModelConfigResponse()
        said.config.parameters["tasks"].string_value = served[-1]
        return said

    with FeedClient("127.0.0.1:1") as client:
        monkeypatch.setattr(client._server, "ModelConfig", configuration)
        monkeypatch.setattr(client, "infer", lambda request: reply)
        assert client.tasks == ("click", "order")
        served.append("click,cart,order")
        (slate,) = client.feed([FeedRequest("ana", "BR", 10)])
    assert slate.items[0].probabilities == {"click": 0.25, "cart": 0.5, "order": 0.75}


@pytest.mark.slow
def test_slates_come_back_with_the_tasks_of_the_served_ranker(feed_server, small_release):
    cascade = Cascade(small_release)
    requests = [
        FeedRequest(str(user), market, cascade.plan.as_of)
        for user in small_release.array("user_id.npy")[:3]
        for market in cascade.plan.markets
    ]
    with connect(feed_server.grpc_url) as client:
        assert client.tasks == cascade.plan.tasks
        slates = client.feed(requests)
    assert slates == unpack(cascade(pack(requests)), cascade.plan.tasks)
    assert all(len(slate.items) == cascade.plan.config.slate for slate in slates)


@pytest.mark.slow
def test_text_may_come_as_a_plain_array_of_text(feed_server, small_release):
    request = pack([FeedRequest("ana", "ID", Cascade(small_release).plan.as_of)])
    with FeedClient(feed_server.grpc_url) as client:
        plain = client.infer(request | {"user_id": np.array(["ana"])})
        assert plain["content_id"].tolist() == client.infer(request)["content_id"].tolist()
