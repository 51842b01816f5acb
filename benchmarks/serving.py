"""Serving: the whole cascade over gRPC, beside the same cascade in this process and Merlin Systems' ensemble.

The release is a real one: a simulated world of five markets is built, trained for one epoch and exported; it
is kept under runs/ for the next time. Requests are of known users of all markets, with sessions and
exclusions. The server is asked by clients in threads of this process, with messages that were written
before; its CPU time is that of all its processes, read from /proc. Before anything is timed, its replies are
compared with the cascade's in this process, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from threadpoolctl import threadpool_limits
from tritonclient.grpc import service_pb2 as messages

from benchmarks.harness import PEERS, Served, machine, peer, peer_python, versions, write_report
from benchmarks.harness import seconds as seconds_text
from benchmarks.load import Load, Send, closed_loop, group_cpu, open_loop
from ensemble.cascade import Cascade
from ensemble.client import DIVERSITY, FeedClient, infer_message
from ensemble.network import open_channel
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.server import TritonServer
from ensemble.serving import ServeConfig, serve_release
from workflows.kept import MADE_BY, code_of, sources

Report = Callable[[str], None]
Request = dict[str, np.ndarray]

USERS = (1, 8, 64)
CLIENTS = (1, 8, 32)
IMPRESSIONS = 400_000
#: Seconds of load in each turn.
TURN_S = 3.0
#: Part of the highest throughput at which the latency under load is taken.
PART = 0.7
#: What is too much for the server, as a part of the highest throughput; of requests of so many users, which
#: are heavy enough for the one process that sends them; and how long it waits for each (s).
TOO_MUCH, OF_USERS, PATIENCE_S = 3.0, 8, 1.0
#: The call of Triton's gRPC service that runs a model.
INFER = "/inference.GRPCInferenceService/ModelInfer"
#: Different requests of each size.
POOL = 128
#: Sizes of Merlin Systems' ensemble: models as ours; it ranks all that it retrieves.
PEER: dict[str, Any] = {
    "users": 20_000,
    "candidates": 100,
    "slate": 10,
    "dim": 64,
    "embedding_dim": 32,
    "hidden": [64],
    "bottom": [64],
    "top": [64, 32],
}


def build(contents: int, seed: int, folder: Path, report: Report) -> Release:
    """The release of a simulated world, built once for each configuration and state of the code behind it."""
    from ensemble.build import BuildConfig, build_release
    from market.world import World, WorldConfig
    from models.ranker import RankerConfig
    from models.two_tower import TwoTowerConfig

    world = WorldConfig(contents=contents, impressions=IMPRESSIONS, seed=seed)
    config = BuildConfig(seed=seed, two_tower=TwoTowerConfig(epochs=1), ranker=RankerConfig(epochs=1))
    made_of = [asdict(world), asdict(config), code_of(sources(*MADE_BY))]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    place = folder / f"serving-{digest.hexdigest()[:12]}"
    if not (place / "release").is_dir():
        report(f"building a release of {contents:,} contents in {place}")
        with tempfile.TemporaryDirectory(prefix="pasar-serving-") as data:
            build_release(World(world).write(Path(data) / "data"), place, config)
    return Release.open(place / "release")


def make_requests(release: Release, users: int, count: int, seed: int) -> list[Request]:
    """Requests of `users` known users each: any market, up to five contents in the session and excluded."""
    rng = np.random.default_rng(seed)
    plan = Plan.of(release)
    known, contents = release.array("user_id.npy"), release.array("text_content_id.npy")

    def some() -> np.ndarray:
        made = contents[rng.integers(0, len(contents), (users, 5))].astype(object)
        made[np.arange(5) >= rng.integers(0, 6, (users, 1))] = ""
        return made

    return [
        {
            "user_id": rng.choice(known, users).astype(object),
            "market": rng.choice(np.array(plan.markets), users).astype(object),
            "time": plan.as_of + rng.integers(0, 3600, users),
            "history": some(),
            "exclude": some(),
            "shown": np.full((users, 0), "", object),
            "diversity": np.full(users, DIVERSITY, np.float32),
            "seed": rng.integers(2**63, size=users),
            "explain": np.zeros(users, bool),
        }
        for _ in range(count)
    ]


def wishes(release: Release, users: int) -> Iterator[tuple[str, Request]]:
    """What requests may ask for, in words, and the tensors that say so."""
    names, count = np.unique(release.array("text_category.npy"), return_counts=True)
    for case, tensor, wish in (
        ("live rooms alone", "kinds", "live"),
        ("the largest category alone", "categories", str(names[count.argmax()])),
        ("without that category", "exclude_categories", str(names[count.argmax()])),
    ):
        yield case, {tensor: np.full((users, 1), wish, object)}


def check(cascade: Cascade, url: str, requests: Sequence[Request]) -> None:
    """Compare the server's replies with the cascade's in this process.

    Raises:
        ValueError: a tensor differs.
    """
    with FeedClient(url) as client:
        for request in requests:
            expected, served = cascade(request), client.infer(request)
            for name, array in expected.items():
                got = served[name]
                if got.dtype == object:
                    got = np.array([text.decode() for text in got.ravel()], object).reshape(got.shape)
                if not np.array_equal(array, got):
                    raise ValueError(f"'{name}' differs between server and this process; nothing was timed")


@contextlib.contextmanager
def client(url: str) -> Iterator[Send]:
    """A connection of the Python client: sends tensors, reads slates."""
    with FeedClient(url, timeout_s=60) as opened:
        opened.tasks  # noqa: B018  (connects)
        yield opened.infer


@contextlib.contextmanager
def prepared(url: str) -> Iterator[Send]:
    """A connection for messages that were written before; replies come back whole and are not read.

    Clients share the machine with the server here, and one that writes and reads in Python takes half a
    core for a thousand requests a second. Triton's own load generator sends such messages too.
    """
    with open_channel(url, []) as channel:
        grpc.channel_ready_future(channel).result(60)
        ask = channel.unary_unary(INFER)
        yield lambda message: ask(message, timeout=60)


def overload(url: str, sent: Sequence[bytes], rate: float, seconds: float, cpu: Callable[[], float]) -> Load:
    """More requests than a server can answer, evenly spaced, each given up after `PATIENCE_S`; latency of
    those answered in time."""
    latency: list[float] = []
    ended = threading.Semaphore(0)

    def end(reply: grpc.Future, due: float) -> None:
        if reply.code() == grpc.StatusCode.OK:
            latency.append(time.perf_counter() - due)
        ended.release()

    with open_channel(url, []) as channel:
        grpc.channel_ready_future(channel).result(60)
        ask = channel.unary_unary(INFER)
        start, used = time.perf_counter(), cpu()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            reply = ask.future(sent[number % len(sent)], timeout=PATIENCE_S)
            reply.add_done_callback(partial(end, due=due))
        for _ in range(int(rate * seconds)):
            ended.acquire()
        return Load(np.array(latency), time.perf_counter() - start, cpu() - used)


class MerlinServer(TritonServer):
    """The same Triton with the packages of the peer's environment and a TensorFlow backend.

    Args:
        python: the environment's interpreter.
        repository, log: as of `TritonServer`.
    """

    def __init__(self, python: Path, repository: Path, *, log: Path) -> None:
        super().__init__(repository, log=log, startup_deadline_s=300)
        self._prefix = python.parents[1]

    def _lay_out_backends(self, wheel: Path, target: Path) -> None:
        super()._lay_out_backends(wheel, target)
        shutil.copytree(PEERS / "backends", target, dirs_exist_ok=True)

    def _environment(self, wheel: Path) -> dict[str, str]:
        given = super()._environment(wheel)
        path = f"{self._prefix / 'bin'}:{given['PATH']}"
        return {**given, "PATH": path, "VIRTUAL_ENV": str(self._prefix)}


def in_process(cascade: Cascade, requests: Sequence[Request], seconds: float) -> Load:
    """The floor: one request after another in this process, one BLAS thread as in the server's stages."""
    latency: list[float] = []
    with threadpool_limits(1):
        cascade(requests[0])
        start, used = time.perf_counter(), time.process_time()
        while (before := time.perf_counter()) < start + seconds:
            cascade(requests[len(latency) % len(requests)])
            latency.append(time.perf_counter() - before)
        return Load(np.array(latency), time.perf_counter() - start, time.process_time() - used)


def told(case: str, side: str, users: int, clients: int, loads: Sequence[Load]) -> Served:
    """One line of the table from all turns of a side."""
    latency = np.concatenate([load.latency for load in loads])
    answered = len(latency)
    p50, p99 = np.quantile(latency, [0.5, 0.99]) if answered else (np.nan, np.nan)
    return Served(
        case=case,
        side=side,
        users=users,
        clients=clients,
        requests=answered,
        p50=float(p50),
        p99=float(p99),
        rate=answered / sum(load.span for load in loads),
        cpu=sum(load.cpu for load in loads) / answered if answered else np.nan,
    )


def ours(
    release: Release, *, turns: int, seconds: float, seed: int, folder: Path, report: Report
) -> list[Served]:
    """Our server and the cascade in this process, in turns; then arrivals at a fixed rate."""
    cascade = Cascade(release)
    results: list[Served] = []

    def add(line: Served) -> Served:
        results.append(line)
        report(_line(line))
        return line

    # However slow this machine is, it refuses nothing but what `overload` gives up.
    settings = ServeConfig(grpc_port=0, http_port=0, metrics_port=0, queue_ms=60_000)
    with serve_release(release.path, folder, settings) as server:

        def cpu() -> float:
            return group_cpu(server.pid)

        url = server.grpc_url
        for users in USERS:
            requests = make_requests(release, users, POOL, seed + users)
            sent = [infer_message(request).SerializeToString() for request in requests]
            with threadpool_limits(1):
                check(cascade, url, requests[:4])
            loads: dict[tuple[str, int], list[Load]] = {}
            for _ in range(turns):
                turn = {("in process", 1): in_process(cascade, requests, seconds)}
                for clients in CLIENTS:
                    turn["server", clients] = closed_loop(lambda: prepared(url), sent, clients, seconds, cpu)
                turn["server, Python client", 1] = closed_loop(lambda: client(url), requests, 1, seconds, cpu)
                for key, load in turn.items():
                    loads.setdefault(key, []).append(load)
            lines = [
                add(told("one after another", side, users, clients, of))
                for (side, clients), of in loads.items()
            ]
            rate = PART * max(line.rate for line in lines if line.side == "server")
            arrived = [open_loop(lambda: prepared(url), sent, rate, seconds, cpu) for _ in range(turns)]
            add(told(f"at {PART:.0%} of the highest rate", "server", users, 64, arrived))
            for case, said in wishes(release, users):
                asked = [request | said for request in requests]
                sent_with = [infer_message(request).SerializeToString() for request in asked]
                with threadpool_limits(1):
                    check(cascade, url, asked[:4])
                sides: dict[str, list[Load]] = {"in process": [], "server": []}
                for _ in range(turns):
                    sides["in process"].append(in_process(cascade, asked, seconds))
                    sides["server"].append(closed_loop(lambda: prepared(url), sent_with, 1, seconds, cpu))
                for side, of in sides.items():
                    add(told(f"one after another, {case}", side, users, 1, of))
            if users != OF_USERS:
                continue
            rate *= TOO_MUCH / PART
            patient = [infer_message(request, PATIENCE_S).SerializeToString() for request in requests]
            many = [overload(url, patient, rate, seconds, cpu) for _ in range(turns)]
            case = f"at {TOO_MUCH:.0%} of it, given up after {PATIENCE_S:g} s"
            add(told(case, "server", users, round(rate * PATIENCE_S), many))
    return results


def merlin_message(user: np.int32) -> messages.ModelInferRequest:
    """Asks Merlin Systems' ensemble for the slate of one user."""
    message = messages.ModelInferRequest(model_name="executor_model")
    message.inputs.add(name="user_id", datatype="INT32", shape=[1])
    message.outputs.add(name="ordered_ids")
    message.raw_input_contents.append(user.tobytes())
    return message


def merlin(
    contents: int, *, turns: int, seconds: float, seed: int, folder: Path, report: Report
) -> tuple[list[Served], dict[str, Any]]:
    """Merlin Systems' ensemble, one user in a request, which is all that its example can take."""
    python = peer_python("merlin_systems")
    sizes = {"contents": contents, "seed": seed, **PEER}
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    digest.update((PEERS / "merlin_systems.py").read_bytes())
    digest.update((PEERS / "merlin_systems.txt").read_bytes())
    place = Path("runs").resolve() / f"serving-merlin-{digest.hexdigest()[:12]}"
    with peer("merlin_systems.py", python) as side:
        if not (place / "built.json").exists():
            report(f"building Merlin Systems' ensemble in {place}")
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            (place / "built.json").write_text(json.dumps(side.ask("build", folder=str(place), **sizes)))
        about = {**side.ask("versions"), **json.loads((place / "built.json").read_text())}
    rng = np.random.default_rng(seed)
    users = rng.integers(1, PEER["users"] + 1, POOL).astype(np.int32)
    sent = [merlin_message(user).SerializeToString() for user in users]
    results = []
    with MerlinServer(python, place / "repository", log=folder / "merlin.log") as server:

        @contextlib.contextmanager
        def connect() -> Iterator[Send]:
            with prepared(server.grpc_url) as send:

                def ask(message: bytes) -> None:
                    reply = messages.ModelInferResponse.FromString(send(message))
                    shapes = [tuple(output.shape) for output in reply.outputs]
                    if shapes != [(1, PEER["slate"])]:
                        raise ValueError(f"Merlin Systems' slate is {shapes}; nothing was timed")

                ask(sent[0])
                yield ask

        for clients in (1, 8):
            made = [
                closed_loop(connect, sent, clients, seconds, lambda: group_cpu(server.pid))
                for _ in range(turns)
            ]
            results.append(told("one after another", "Merlin Systems", 1, clients, made))
            report(_line(results[-1]))
    return results, about


def _line(line: Served) -> str:
    return (
        f"{line.case}, {line.users} users, {line.clients} clients, {line.side}: "
        f"p50 {seconds_text(line.p50)}, p99 {seconds_text(line.p99)}, {line.rate:,.0f} requests/s, "
        f"CPU {seconds_text(line.cpu)}"
    )


def run(
    *,
    rows: int = 100_000,
    repeats: int = 5,
    seed: int = 0,
    file: Path | None = None,
    report: Report = print,
) -> list[Served]:
    """Run the benchmark.

    Args:
        rows: contents of the simulated world.
        repeats: turns of each side in each case, of three seconds.
        seed: of the world, the models and the requests.
        file: where the report goes as JSON.
        report: called with a line as each figure is known.
    """
    before = machine()
    release = build(rows, seed, Path("runs"), report)
    with tempfile.TemporaryDirectory(prefix="pasar-serving-") as place:
        results = ours(release, turns=repeats, seconds=TURN_S, seed=seed, folder=Path(place), report=report)
        others, about_peer = merlin(
            rows, turns=repeats, seconds=TURN_S, seed=seed, folder=Path(place), report=report
        )
    results += others
    if file:
        installed = versions("onnxruntime", "numpy", "tritonclient", "nvidia-pytriton")
        write_report(
            file,
            "serving",
            {"rows": rows, "repeats": repeats, "seed": seed, "turn_s": TURN_S},
            before,
            {**installed, "peers": about_peer["versions"]},
            results,
            cascade=asdict(Plan.of(release).config),
            parameters=about_peer["parameters"],
        )
    return results
