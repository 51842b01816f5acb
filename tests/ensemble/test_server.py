"""One real server for the module; each test leaves it serving."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from ensemble.network import administrator, read_key
from ensemble.release import ReleaseError
from ensemble.repository import RepositoryError, add_version, versions, write_repository
from ensemble.server import ServerError, TritonServer, _why
from ensemble.steps import STRING
from tests.ensemble import toy

CASCADE = (toy.STEPS, toy.REQUEST, toy.REPLY)
STAGES = {"stages": "toy:build", "python_path": Path(toy.__file__).parent}


class Running:
    """A served repository, and the number of the release it serves."""

    def __init__(self, root):
        self.root = root
        self.repository = root / "repository"
        self.number = 1
        write_repository(self.repository, self.release(), *CASCADE, delay_us=5000, **STAGES)
        self.server = TritonServer(self.repository, log=root / "triton.log", startup_deadline_s=120)

    def release(self, **options):
        path = self.root / f"release-{self.number}-{len(os.listdir(self.root))}"
        return toy.write_release(path, self.number, **options)

    def log(self):
        return self.server.log.read_text()

    @contextmanager
    def client(self):
        client = grpc.InferenceServerClient(self.server.grpc_url)
        try:
            yield client
        finally:
            client.close()

    def ask(self, *users, **changed):
        with self.client() as client:
            return ask(client, *users, **changed)


def ask(client, *users, model="feed", specs=toy.REPLY, patience_s=None, **changed):
    """A request by numpy arrays; `changed` replaces a tensor, None leaves it out."""
    rows = len(users)
    arrays = {
        "user_id": np.array(users, object)[:, None],
        "diversity": np.zeros((rows, 1), np.float32),
        "exclude": np.full((rows, 1), "", object),
        **changed,
    }
    inputs = []
    for name, array in arrays.items():
        if array is not None:
            kind = "BYTES" if array.dtype == STRING else {"f4": "FP32", "f8": "FP64"}[array.dtype.str[1:]]
            inputs.append(grpc.InferInput(name, array.shape, kind).set_data_from_numpy(array))
    told = None if patience_s is None else round(1e6 * patience_s)
    result = client.infer(model, inputs, client_timeout=120, timeout=told)
    return {spec.name: result.as_numpy(spec.name) for spec in specs}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("server"))
    with running.server:
        yield running


@pytest.fixture
def feed(running):
    """The server, with what a halt of this machine between two tests may have ended."""
    running.server.revive()
    return running


def in_process(number, release, users, exclude):
    """What the steps answer without a server."""
    from ensemble.release import Release

    opened = Release.open(release)
    state = toy.build("user_state", opened)(user_id=np.array(users, object))["state"]
    return {
        **toy.build("pick", opened)(vector=state, exclude=np.array(exclude, object)),
        "graph_release": number,
    }


def test_a_reply_equals_the_cascade_without_a_server_bit_for_bit(feed):
    users, exclude = ["ana", "björn", "chi"], [["item-1", ""], ["item-3", "item-4"], ["", ""]]
    got = feed.ask(*users, exclude=np.array(exclude, object))
    wanted = in_process(feed.number, feed.release(), users, exclude)
    assert [[i.decode() for i in row] for row in got["item_id"]] == wanted["item_id"].tolist()
    np.testing.assert_array_equal(got["score"], wanted["score"])
    assert got["stage_release"].ravel().tolist() == got["graph_release"].ravel().tolist() == [feed.number] * 3


def test_requests_that_share_a_run_get_what_they_would_get_alone(feed):
    asked = [(f"user-{i}" * (i % 4 + 1), [f"item-{j}" for j in range(i % 5)]) for i in range(24)]

    def one(user, exclude):
        return feed.ask(user, exclude=np.array([exclude], object).reshape(1, -1))

    alone = [one(*request) for request in asked]
    with feed.client() as client:
        before = counts(client, "pick")
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(lambda request: one(*request), asked))
        after = counts(client, "pick")
    assert after[0] - before[0] == len(asked)
    assert after[1] - before[1] < len(asked), "no two requests shared a run"
    for a, b in zip(alone, together):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def counts(client, model):
    stats = client.get_inference_statistics(model).model_stats[-1]
    return stats.inference_count, stats.execution_count


def test_an_unknown_user_does_not_spoil_the_run_it_shares(feed):
    def one(user):
        try:
            return feed.ask(user)["item_id"].shape
        except InferenceServerException as error:
            return error.status()

    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(one, ["ana", "stranger", "bo"] * 4))
    assert replies == [(1, 2), "StatusCode.NOT_FOUND", (1, 2)] * 4


FAULTS = [
    ({"exclude": None}, "INVALID_ARGUMENT", "expected 3 inputs but got 2"),
    (
        {"diversity": np.zeros((1, 2), np.float32)},
        "INVALID_ARGUMENT",
        "unexpected shape for input 'diversity'",
    ),
    ({"diversity": np.zeros((1, 1))}, "INVALID_ARGUMENT", "'diversity'.*FP64.*FP32"),
    (
        {"diversity": np.full((1, 1), np.nan, np.float32)},
        "INVALID_ARGUMENT",
        "tensor 'diversity' holds a non-fin",
    ),
    (
        {"exclude": np.array([[b"\xff"]], object)},
        "INVALID_ARGUMENT",
        "tensor 'exclude' holds text that is not UTF-8",
    ),
    ({"user_id": np.array([["stranger"]], object)}, "NOT_FOUND", "register the user first"),
    (
        {"user_id": np.array([["breaks"]], object)},
        "INTERNAL",
        "stage 'user_state' failed; see the server log$",
    ),
    (
        {"user_id": np.array([["bad-shape"]], object)},
        "INTERNAL",
        "stage 'user_state' failed; see the server log$",
    ),
]


@pytest.mark.parametrize(("changed", "status", "message"), FAULTS)
def test_a_bad_request_gets_a_typed_error_and_the_server_serves_on(feed, changed, status, message):
    with pytest.raises(InferenceServerException, match=message) as caught:
        feed.ask("ana", **changed)
    assert caught.value.status() == f"StatusCode.{status}"
    text = caught.value.message()
    assert not any(leak in text for leak in ("Traceback", "secret", ".py", str(feed.root), "/"))
    assert feed.ask("ana")["item_id"].shape == (1, 2)


def test_an_unexpected_failure_is_explained_in_the_server_s_log(feed):
    with pytest.raises(InferenceServerException):
        feed.ask("breaks")
    with pytest.raises(InferenceServerException):
        feed.ask("bad-shape")
    log = feed.log()
    assert "toy.py is secret" in log
    assert "'state' is float32[1, 4], not float32[B, 3] with B = 1" in log


@contextmanager
def load(feed):
    """Requests from three clients while the context lasts; yields replies (stage, graph) and errors."""
    replies, errors, ended = [], [], threading.Event()

    def loop():
        with feed.client() as client:
            while not ended.is_set():
                try:
                    got = ask(client, "ana")
                    replies.append((int(got["stage_release"][0, 0]), int(got["graph_release"][0, 0])))
                except InferenceServerException as error:
                    errors.append(str(error))

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while not replies and not errors:
            time.sleep(0.01)
        yield replies, errors
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_new_release_under_load_loses_no_request_and_mixes_no_two(feed):
    old, feed.number = feed.number, feed.number + 1
    with load(feed) as (replies, errors):
        version = add_version(
            feed.repository, feed.release(), *CASCADE, url=feed.server.grpc_url, drain_s=0.3, deadline_s=120
        )
        moved = len(replies)
        while len(replies) < moved + 20 and not errors:
            time.sleep(0.01)
    assert errors == []
    assert set(replies) == {(old, old), (feed.number, feed.number)}
    # Each thread may have had one reply that it had not told of yet, however long it was halted with it.
    assert replies[moved:].count((old, old)) <= 3
    assert all(versions(feed.repository, step.name) == [version] for step in toy.STEPS)
    with feed.client() as client:
        deadline = time.monotonic() + 120
        while client.is_model_ready("pick", str(version - 1)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not client.is_model_ready("pick", str(version - 1))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize("file", ["items.npy", "query.onnx", "items.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_release_is_refused_by_file_name_and_nothing_is_touched(feed, file, damage):
    release = feed.release()
    damage(release / file)
    before = sorted(feed.repository.rglob("*"))
    with pytest.raises(ReleaseError, match=file):
        add_version(feed.repository, release, *CASCADE, url=feed.server.grpc_url)
    assert sorted(feed.repository.rglob("*")) == before
    assert feed.ask("ana")["stage_release"] == feed.number


def test_a_graph_that_does_not_load_is_undone_under_load(feed):
    release = feed.release(graph=b"this is no graph")
    before = {step.name: versions(feed.repository, step.name) for step in toy.STEPS}
    with load(feed) as (replies, errors):
        with pytest.raises(RepositoryError, match=r"(?s)was not taken.*keeps serving.*'query'"):
            add_version(feed.repository, release, *CASCADE, url=feed.server.grpc_url, deadline_s=120)
        seen = len(replies)
        while len(replies) < seen + 10 and not errors:
            time.sleep(0.01)
    assert errors == []
    assert set(replies) == {(feed.number, feed.number)}
    assert {step.name: versions(feed.repository, step.name) for step in toy.STEPS} == before


@pytest.mark.parametrize("ahead", [-1, 7], ids=["its next version is served", "its next version is not"])
def test_a_repository_that_the_server_does_not_serve_stays_as_it_is(feed, tmp_path, ahead):
    other = tmp_path / "repository"
    running = versions(feed.repository, "pick")[-1]
    write_repository(other, feed.release(), *CASCADE, version=running + ahead, **STAGES)
    before = {step.name: versions(other, step.name) for step in toy.STEPS}
    with pytest.raises(RepositoryError, match=f"{feed.server.grpc_url} does not serve {other}; check --url"):
        add_version(other, feed.release(), *CASCADE, url=feed.server.grpc_url, deadline_s=120)
    assert {step.name: versions(other, step.name) for step in toy.STEPS} == before
    assert feed.ask("ana")["stage_release"] == feed.number


@contextmanager
def whoever(feed):
    with feed.client() as client:
        yield client


@contextmanager
def with_the_key_of_another(feed):
    with administrator(feed.server.grpc_url, "0" * 32) as client:
        yield client


@pytest.mark.parametrize("by", [whoever, with_the_key_of_another])
def test_who_has_not_the_key_changes_nothing_and_reads_nobody_else(feed, by):
    with by(feed) as client:
        for act in (
            lambda: client.unload_model("pick"),
            lambda: client.load_model("pick"),
            lambda: client.get_model_repository_index(),
            lambda: client.register_system_shared_memory("mine", "/any", 64),
            lambda: client.get_system_shared_memory_status(),
            lambda: client.update_log_settings({"log_verbose_level": 1}),
            lambda: client.update_trace_settings(settings={"trace_level": ["TENSORS"]}),
        ):
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                act()
    for path in ("repository/models/pick/unload", "repository/index", "logging"):
        asked = urllib.request.Request(f"http://{feed.server.http_url}/v2/{path}", b"{}")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=120)
        assert caught.value.code == 403
    assert feed.ask("ana")["stage_release"] == feed.number


def test_the_key_lies_in_the_repository_for_its_owner_alone(feed):
    file = feed.repository / ".key"
    assert file.stat().st_mode & 0o777 == 0o600
    with administrator(feed.server.grpc_url, read_key(feed.repository)) as client:
        assert "pick" in {model.name for model in client.get_model_repository_index().models}


def processes(server):
    """Of live processes one by name, see `every_process`."""
    return {name: ids[0] for name, ids in live(server).items()}


def every_process(server, name):
    """Ids of live processes, ascending, that are "server" or run a step of that name."""
    return sorted(live(server).get(name, []))


def live(server):
    """Live processes that carry the server's shared-memory prefix: itself, and stubs by the step they run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not zombie and any(server._shm in word for word in command):
            name = "server" if "stub" not in command[0] else Path(command[1]).parts[-3]
            found.setdefault(name, []).append(int(folder.name))
    return found


def memory(server):
    return list(Path("/dev/shm").glob(f"{server._shm}*"))


@pytest.mark.parametrize("step", ["pick", "query"])
def test_a_killed_step_is_back_while_somebody_watches(feed, step):
    with feed.server.watch(every_s=0.1):
        os.kill(processes(feed.server)[step], signal.SIGKILL)
        back = None
        deadline = time.monotonic() + 120
        while back is None and time.monotonic() < deadline:
            try:
                back = feed.ask("ana")["item_id"]
            except InferenceServerException:
                time.sleep(0.05)
    assert back is not None
    assert feed.server.revive() == []


def test_a_process_that_outlives_another_of_its_step_is_not_kept_for_ever(tmp_path, monkeypatch):
    # Long enough not to pass between two lines of this test on a machine that halts.
    monkeypatch.setattr("ensemble.server._FORGOTTEN_S", 3)
    release = toy.write_release(tmp_path / "release")
    write_repository(tmp_path / "repository", release, *CASCADE, instances=2, **STAGES)
    with TritonServer(tmp_path / "repository", log=tmp_path / "log", startup_deadline_s=120) as server:
        before = every_process(server, "pick")
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        deadline = time.monotonic() + 120
        while "pick" not in server.revive() and time.monotonic() < deadline:
            time.sleep(0.05)
        server.revive()
        assert before[1] in every_process(server, "pick"), "it may still be answering"
        while before[1] in every_process(server, "pick") and time.monotonic() < deadline:
            time.sleep(0.1)
            server.revive()
        now = every_process(server, "pick")
        assert len(now) == 2
        assert not set(now) & set(before)
        with grpc.InferenceServerClient(server.grpc_url) as client:
            assert ask(client, "ana")["score"].shape == (1, 2)


def test_after_a_step_stood_still_everybody_gets_what_they_asked_for(feed):
    users = ["a", "bb", "ccc", "dddd"]
    wanted = {user: feed.ask(user)["score"].tolist() for user in users}
    with feed.server.watch(every_s=0.1), load(feed) as (replies, _):
        pid = processes(feed.server)["pick"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)  # Triton gives the process up after one
        os.kill(pid, signal.SIGCONT)
        got, deadline = [], time.monotonic() + 120
        while len(got) < 3 * len(users) and time.monotonic() < deadline:
            user = users[len(got) % len(users)]
            try:
                got.append((user, feed.ask(user)["score"].tolist()))
            except InferenceServerException:
                time.sleep(0.05)
    assert got == [(user, wanted[user]) for user in users * 3]
    assert set(replies) == {(feed.number, feed.number)}
    assert processes(feed.server)["pick"] != pid


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """Asks a server where no request waits for ever."""
    root = tmp_path_factory.mktemp("impatient")
    release = toy.write_release(root / "release")
    # A run holds one request, so that each needs a process of its own.
    limits = {"queue_ms": 60_000, "instances": 2, "max_batch": 1}
    write_repository(root / "repository", release, *CASCADE, **limits, **STAGES)
    with TritonServer(root / "repository", log=root / "triton.log", startup_deadline_s=120) as server:

        def wait(user, patience_s=None):
            with grpc.InferenceServerClient(server.grpc_url) as client:
                return ask(client, user, patience_s=patience_s)["item_id"].tolist()

        yield wait


def test_a_busy_server_refuses_who_waited_longer_than_they_will(impatient):
    expected = impatient("ana")
    with ThreadPoolExecutor(4) as pool:
        sleeps = [pool.submit(impatient, "sleeps") for _ in range(2)]
        time.sleep(0.1)
        short, long = pool.submit(impatient, "ana", 0.05), pool.submit(impatient, "ana", 30)
        with pytest.raises(InferenceServerException, match="Request timeout expired") as caught:
            short.result()
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert long.result() == expected
        for one in sleeps:
            one.result()


def test_nobody_waits_for_a_process_that_is_free(impatient):
    # What Triton's batcher forgets it looks for half a second later. On a machine that halts others wait.
    refused = []
    while len(refused) < 4 and 0 not in refused:
        with ThreadPoolExecutor(6) as pool:
            naps = []
            for _ in range(6):
                naps.append(pool.submit(impatient, "naps", 0.45))
                time.sleep(0.01)
        refused.append(sum(nap.exception() is not None for nap in naps))
    assert 0 in refused, (
        f"in {len(refused)} turns, refused of 6 requests that need not wait for .3 s: {refused}"
    )


def test_a_sign_of_life_does_not_reach_the_stage(feed):
    before = feed.log()
    assert feed.server.revive() == []
    assert feed.log() == before, "user_state fails, and says so, on the empty user of a sign of life"


def test_a_stopped_server_leaves_no_process_and_no_shared_memory(tmp_path):
    write_repository(tmp_path / "repo", toy.write_release(tmp_path / "r"), *CASCADE, **STAGES)
    server = TritonServer(tmp_path / "repo", log=tmp_path / "log")
    with server:
        assert set(processes(server)) == {"server", "user_state", "query", "pick"}
        assert memory(server)
        os.kill(server.pid, signal.SIGKILL)  # the worst end: stubs and their memory outlive the server
    assert processes(server) == {}
    assert memory(server) == []
    with pytest.raises(ServerError, match="is not running"):
        _ = server.grpc_url
    server.stop()  # again, without harm


OWNER = """
import sys, time
from ensemble.server import TritonServer
server = TritonServer(sys.argv[1], log=sys.argv[2]).start()
print(server._shm, server._folder, flush=True)
time.sleep(600)
"""


def test_a_server_does_not_outlive_a_killed_process_that_started_it(tmp_path):
    write_repository(tmp_path / "repo", toy.write_release(tmp_path / "r"), *CASCADE, **STAGES)
    command = [sys.executable, "-c", OWNER, tmp_path / "repo", tmp_path / "log"]
    server = TritonServer(tmp_path / "repo", log=tmp_path / "log")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            server._shm, folder = owner.stdout.readline().split()
            assert set(processes(server)) == {"server", "user_state", "query", "pick"}
            assert memory(server)
        finally:
            owner.kill()
    deadline = time.monotonic() + 120
    while (processes(server) or memory(server) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(server) == {}
    assert memory(server) == []
    assert not Path(folder).exists()


def test_a_repository_may_lie_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "it's $HOME; (é)"
    write_repository(folder / "repo", toy.write_release(folder / "r"), *CASCADE, **STAGES)
    with TritonServer(folder / "repo", log=folder / "log", startup_deadline_s=120) as server:
        assert set(processes(server)) == {"server", "user_state", "query", "pick"}


@pytest.mark.parametrize("closed", ["http", "grpc", "metrics"])
def test_a_server_is_ready_once_all_of_its_ports_answer(tmp_path, monkeypatch, closed):
    class Ready:
        def is_server_ready(self, client_timeout):
            return True

    server = TritonServer(tmp_path, log=tmp_path / "triton.log")
    monkeypatch.setattr(server, "_client", lambda: nullcontext(Ready()))
    with ExitStack() as opened:
        bound = {name: opened.enter_context(socket.socket()) for name in ("http", "grpc", "metrics")}
        for name, one in bound.items():
            one.bind((server.host, 0))
            if name != closed:
                one.listen()
        monkeypatch.setattr(server, "_ports", {name: one.getsockname()[1] for name, one in bound.items()})
        assert not server._is_ready()
        bound[closed].listen()
        assert server._is_ready()


def test_waiting_ends_when_it_is_told_to(feed):
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    feed.server.wait(stop, every_s=30)
    assert stop.is_set()


def test_a_server_that_ends_by_itself_ends_the_waiting_with_its_last_words(tmp_path):
    write_repository(tmp_path / "repo", toy.write_release(tmp_path / "r"), *CASCADE, **STAGES)
    with TritonServer(tmp_path / "repo", log=tmp_path / "log") as server, server.watch(every_s=0.1):
        with server.log.open("a") as log:
            log.write("E0101 no memory left\n")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"(?s)ended by itself with status -9.*/log says:.*no memory"):
            server.wait(threading.Event(), every_s=0.1)
        server._log_start = 1_000_000  # as where the log was cut since
        with pytest.raises(ServerError, match=r"(?s)ended by itself with status -9.*/log says:.*no memory"):
            server.wait(threading.Event(), every_s=0.1)
        server.log.unlink()
        with pytest.raises(ServerError, match=r"ended by itself with status -9.*"):
            server.wait(threading.Event(), every_s=0.1)


def test_a_watch_goes_on_while_the_repository_cannot_be_read(tmp_path, monkeypatch):
    server, asked = TritonServer(tmp_path, log=tmp_path / "log"), threading.Semaphore(0)

    def revive():
        asked.release()
        raise RepositoryError("config.pbtxt cannot be read")

    monkeypatch.setattr(server, "revive", revive)
    with server.watch(every_s=0.01):
        assert all(asked.acquire(timeout=120) for _ in range(2))


def test_a_watch_ends_though_a_step_hangs_while_it_is_loaded_anew(tmp_path, monkeypatch):
    server, hangs, freed = TritonServer(tmp_path, log=tmp_path / "log"), threading.Event(), threading.Event()
    came_back = []

    def revive():
        hangs.set()
        freed.wait()
        came_back.append("late")

    monkeypatch.setattr(server, "revive", revive)
    monkeypatch.setattr("ensemble.server._EXIT_S", 0.1)
    with server.watch(every_s=0.01):
        assert hangs.wait(120)
    assert came_back == [], "the watch ended without it"
    freed.set()


def test_a_model_that_cannot_load_is_named_by_its_file(tmp_path):
    repository = tmp_path / "repo"
    write_repository(repository, toy.write_release(tmp_path / "r"), *CASCADE, **STAGES)
    flip(repository / "pick" / "1" / "release" / "items.npy")
    with pytest.raises(ServerError, match=r"(?s)items\.npy differs from its SHA-256"):
        TritonServer(repository, log=tmp_path / "log").start()


def test_a_stage_that_hangs_ends_at_the_deadline(tmp_path):
    (tmp_path / "hanging.py").write_text("import time\ndef build(name, release): time.sleep(600)\n")
    release = toy.write_release(tmp_path / "r")
    write_repository(tmp_path / "repo", release, *CASCADE, stages="hanging:build", python_path=tmp_path)
    server = TritonServer(tmp_path / "repo", log=tmp_path / "log", startup_deadline_s=2)
    with pytest.raises(ServerError, match="was not ready after 2 s"):
        server.start()
    assert processes(server) == {}
    assert memory(server) == []


def test_a_port_in_use_is_named(feed, tmp_path):
    shutil.copytree(feed.repository, tmp_path / "repo")
    port = int(feed.server.grpc_url.rpartition(":")[2])
    with pytest.raises(ServerError, match=f"grpc port {port} on .* cannot be used .*choose another"):
        TritonServer(tmp_path / "repo", log=tmp_path / "log", grpc_port=port).start()


def test_a_port_that_is_asked_for_twice_is_named(feed, tmp_path):
    server = TritonServer(feed.repository, log=tmp_path / "log", grpc_port=47011, metrics_port=47011)
    with pytest.raises(ServerError, match="port 47011 is that of grpc and metrics; give each its own"):
        server.start()


@pytest.mark.parametrize("host", ["", "::1", "nowhere.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_host_s_is_named(feed, tmp_path, host):
    server = TritonServer(feed.repository, log=tmp_path / "log", host=host)
    with pytest.raises(ServerError, match=f"'{host}' is no address to listen on .* IPv4 address of"):
        server.start()


def test_a_proxy_is_not_asked_for_a_server_of_this_host(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    write_repository(tmp_path / "repo", toy.write_release(tmp_path / "r"), *CASCADE, **STAGES)
    with TritonServer(tmp_path / "repo", log=tmp_path / "log", startup_deadline_s=120) as server:
        assert server.revive() == []


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME"])
def test_a_folder_for_temporary_files_that_a_shell_would_split_is_refused_before_anything_starts(
    tmp_path, monkeypatch, name
):
    write_repository(tmp_path / "repo", toy.write_release(tmp_path / "r"), *CASCADE, **STAGES)
    place = tmp_path / name
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with pytest.raises(ServerError, match="would not read that as one name; set TMPDIR to a folder without"):
        TritonServer(tmp_path / "repo", log=tmp_path / "log").start()
    assert not any(place.iterdir())


def test_why_a_server_did_not_start_is_not_what_every_host_without_a_gpu_says():
    harmless = [
        'E1130 17:23:18.246338 24370 server.cc:241] "CudaDriverHelper has not been initialized."',
        'E1130 17:24:15.455200 25180 ensemble_scheduler.cc:1468] "unable to create stream for feed: CUDA '
        'driver version is insufficient for CUDA runtime version"',
        "Error: Failed to initialize NVML",
        'W1130 17:24:15.456746 25180 metrics.cc:798] "DCGM unable to start: DCGM initialization error"',
        'W1130 17:24:16.215683 25180 pinned_memory_manager.cc:170] "failed to allocate pinned system memory"',
    ]
    faults = ["bash: line 1: /a: No such file or directory", "E1130 17:24:17 1 model.cc:1] failed to load"]
    assert _why("\n".join([faults[0], *harmless, "I1130 ready", faults[1]])) == "\n".join(faults)


def test_a_folder_without_models_is_refused(tmp_path):
    with pytest.raises(ServerError, match="write a repository there first"):
        TritonServer(tmp_path, log=tmp_path / "log").start()


def test_a_host_without_the_wheel_is_told_what_to_install(feed, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerError, match="nvidia-pytriton is not installed; run `make setup`"):
        TritonServer(feed.repository, log=tmp_path / "log").start()


def test_another_platform_is_refused_before_anything_starts(feed, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ServerError, match="runs on Linux x86_64, this is darwin"):
        TritonServer(feed.repository, log=tmp_path / "log").start()
