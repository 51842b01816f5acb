"""Requests of the serving benchmark are real, a wrong reply ends it, its table says what was measured."""

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages
from tritonclient.utils import deserialize_bytes_tensor

from benchmarks import serving
from benchmarks.harness import machine, table, write_report
from benchmarks.load import Load
from ensemble.cascade import Cascade
from ensemble.client import infer_message
from ensemble.server import find_server
from ensemble.stages.user_state import REQUEST
from ensemble.wire import read_requests


def test_requests_are_of_known_users_and_change_with_the_seed_alone(small_release):
    once, again, other = (serving.make_requests(small_release, 8, 3, seed) for seed in (1, 1, 2))
    users = set(small_release.array("user_id.npy"))
    assert all(set(request["user_id"]) <= users for request in once)
    for one, same in zip(once, again):
        assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(once[0]["user_id"], other[0]["user_id"])
    slates = Cascade(small_release)(once[0])["content_id"]
    assert (slates != "").all()


def test_what_requests_ask_for_is_there_and_makes_other_slates(small_release):
    cascade, (request,) = Cascade(small_release), serving.make_requests(small_release, 8, 1, seed=3)
    usual = cascade(request)["content_id"]
    cases = dict(serving.wishes(small_release, 8))
    assert len(cases) == 3
    for said in cases.values():
        made = cascade(request | said)["content_id"]
        assert (made != "").any()
        assert (made != usual).any()


def test_a_message_written_before_says_what_the_client_would(small_release):
    [request] = serving.make_requests(small_release, 3, 1, seed=0)
    message = messages.ModelInferRequest.FromString(infer_message(request).SerializeToString())
    assert (message.model_name, [(i.name, list(i.shape)) for i in message.inputs]) == (
        "feed",
        [("request", [3, 1])],
    )
    texts = deserialize_bytes_tensor(message.raw_input_contents[0])
    read = read_requests(np.array([text.decode() for text in texts], object))
    unsaid = {spec.name for spec in REQUEST if spec.optional}
    assert read.keys() == request.keys() | unsaid
    assert not any(read[name].size for name in unsaid)
    for name, array in request.items():
        got = read[name]
        if array.ndim == 2:  # a list ends where it was filled
            got = np.pad(got, ((0, 0), (0, array.shape[1] - got.shape[1])), constant_values="")
        np.testing.assert_array_equal(got, array)


def test_the_peer_is_asked_for_one_user_s_slate_alone():
    message = serving.merlin_message(np.int32(7))
    assert [output.name for output in message.outputs] == ["ordered_ids"]
    assert np.frombuffer(message.raw_input_contents[0], np.int32).tolist() == [7]


def test_a_server_that_answers_otherwise_is_not_timed(small_release, monkeypatch):
    cascade = Cascade(small_release)
    requests = serving.make_requests(small_release, 2, 1, seed=0)

    class Client:
        def __init__(self, change):
            self.change = change

        def infer(self, request):
            reply = cascade(request)
            texts = {name: array for name, array in reply.items() if array.dtype == object}
            wire = {
                name: np.array([text.encode() for text in array.ravel()], object).reshape(array.shape)
                for name, array in texts.items()
            }
            return reply | wire | {"slate_value": reply["slate_value"] + np.float32(self.change)}

    for change in (0, 1e-3):
        client = Client(change)
        monkeypatch.setattr(serving, "FeedClient", lambda url, c=client: contextlib.nullcontext(c))
        refused = pytest.raises(ValueError, match="'slate_value' differs")
        with refused if change else contextlib.nullcontext():
            serving.check(cascade, "", requests)


def test_a_line_pools_the_turns():
    loads = [Load(np.array([1.0, 3.0]), 4.0, 1.0), Load(np.array([2.0, 2.0]), 4.0, 3.0)]
    line = serving.told("one after another", "server", 1, 8, loads)
    assert (line.requests, line.p50, line.rate, line.cpu) == (4, 2.0, 0.5, 1.0)
    assert "| one after another | 1 | 8 | server | 2 s | 2.97 s | 0 | 1 s |" in table([line])


def test_a_side_that_answered_nothing_in_time_has_a_line_without_latency(tmp_path):
    line = serving.told("too much", "server", 8, 64, [Load(np.zeros(0), 4.0, 3.0)])
    assert (line.requests, line.rate) == (0, 0)
    assert "| too much | 8 | 64 | server |  |  | 0 |  |" in table([line])
    write_report(tmp_path / "report.json", "serving", {}, machine(), {}, [line])
    (told,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert told["p50"] is told["p99"] is told["cpu"] is None


def test_a_release_is_built_anew_when_any_code_that_makes_it_changes():
    root = Path(serving.__file__).parents[1]
    made_by, found = [root / "ensemble/build.py"], set()
    while made_by:
        source = made_by.pop()
        if source in found or not source.exists():
            continue
        found.add(source)
        for imported in re.findall(r"^(?:from|import) ([\w.]+)", source.read_text(), re.MULTILINE):
            place = root.joinpath(*imported.split("."))
            made_by += [place.with_suffix(".py"), place / "__init__.py"]
    assert root / "ensemble/distil.py" in found
    assert found <= set(serving.sources(*serving.MADE_BY))


def test_a_built_release_is_found_again_until_its_configuration_changes(small_release, tmp_path, monkeypatch):
    import ensemble.build

    built = []

    def fake(dataset, folder, config):
        built.append(folder)
        folder.mkdir(parents=True)
        (folder / "release").symlink_to(small_release.path)

    monkeypatch.setattr(ensemble.build, "build_release", fake)
    monkeypatch.setattr("market.world.World.write", lambda self, path: None)
    for contents in (50, 50, 60):
        serving.build(contents, 0, tmp_path, lambda line: None)
    assert len(built) == 2
    assert built[0] != built[1]


def test_the_peer_s_server_has_its_packages_and_backend_beside_ours(tmp_path):
    server = serving.MerlinServer(tmp_path / "env/bin/python", tmp_path / "models", log=tmp_path / "log")
    wheel = find_server()
    environment = server._environment(wheel)
    assert environment["PATH"].startswith(f"{tmp_path / 'env/bin'}:")
    assert environment["VIRTUAL_ENV"] == str(tmp_path / "env")
    server._lay_out_backends(wheel, tmp_path / "backends")
    assert (tmp_path / "backends/tensorflow/model.py").is_file()
    assert (tmp_path / "backends/python/triton_python_backend_stub").is_file()
