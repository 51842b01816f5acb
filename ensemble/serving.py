"""A release served on Triton: the server's knobs, its repository made anew, the server itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ensemble.blending import Blend
from ensemble.cascade import served_steps
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.repository import CONFIG, expect_processes, write_repository
from ensemble.server import TritonServer
from ensemble.stages.events import Events
from ensemble.stages.feedback import Feedback
from ensemble.steering import without_effect
from ensemble.wire import WIRE_REQUEST, wire_reply
from feedback.log import FeedbackLog, expect_apart
from market.folders import expect_own, only_user, remove, tidy
from market.knobs import expect
from market.machine import cores
from supply.journal import JOURNAL, Journal
from supply.rules import Rules


@dataclass(frozen=True)
class ServeConfig:
    """Knobs of the server.

    Attributes:
        host: address to listen on.
        grpc_port: port of gRPC; 0 takes a free one.
        http_port: port of HTTP; 0 takes a free one.
        metrics_port: port of Prometheus metrics; 0 takes a free one.
        max_batch: requests that one run of a step may hold (requests).
        delay_us: time that a request may wait for others to share its run (microseconds).
        queue_ms: time that a request may wait for a process before it is refused, if its client has not less
            patience (milliseconds); 0 for ever.
        one_process: run all steps of a request in one process, the fastest way on a CPU; false makes each
            step a model of its own, as a GPU host needs, where Triton runs the graphs itself.
        instances: processes of each Python step (processes); 0 takes one for each core where a process runs
            all steps, but at least two, else two. One alone can have no limit of `queue_ms`.
        threads: ONNX Runtime's threads for each graph that is a model of its own (threads).
        startup_deadline_s: time until every step must be ready, of a release that is taken later, too
            (seconds).
        rules: what may not be shown where.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    max_batch: int = 64
    delay_us: int = 0
    queue_ms: int = 5000
    one_process: bool = True
    instances: int = 0
    threads: int = 1
    startup_deadline_s: float = 60.0
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        expect(self, "serve", "grpc_port http_port metrics_port", least=0, most=65_535)
        expect(self, "serve", "max_batch threads", least=1)
        expect(self, "serve", "delay_us queue_ms instances", least=0)
        expect(self, "serve", "startup_deadline_s", above=0)
        expect_processes(self.instances, self.queue_ms)

    @property
    def processes(self) -> int:
        """Processes of each Python step."""
        return self.instances or (max(cores(), 2) if self.one_process else 2)


@contextlib.contextmanager
def serve_release(
    release: Path,
    run: Path,
    settings: ServeConfig,
    state: Path | None = None,
    feedback: Path | None = None,
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[TritonServer]:
    """A Triton server of a release while the context lasts; its repository is made anew under `run`.

    Args:
        release: folder of a release.
        state: folder of the live state, made where it does not exist; None serves without one.
        feedback: folder of the feedback log, made where it does not exist; None takes none in.
        warn: told, a line each, which rules forbid what no content of the release has.

    Raises:
        FolderInUse: another server works in `run`, or its `repository` is none.
        ReleaseError: the release is damaged, or `run`, `state` or `feedback` lies in it.
        ValueError: under the release's weights nothing is worth showing, or `feedback` is no folder of its
            own.
        OSError: nothing can be written into it.
        ServerError: as `TritonServer.start`.
    """
    elsewhere = "choose another folder with --run"
    opened = Release.open(release)
    plan, repository = Plan.of(opened), run / "repository"
    opened.expect_outside(repository, elsewhere)
    if state is not None:
        opened.expect_outside(state / JOURNAL, "choose another folder with --state")
    if feedback is not None:
        opened.expect_outside(feedback / "log", "choose another folder with --feedback")
        expect_apart(feedback, run, state)
    Blend(opened)  # refuses weights under which nothing is worth showing
    for text in without_effect(opened, settings.rules):
        warn(text)
    options = {"rules": json.dumps(asdict(settings.rules))}
    if state is not None:
        Journal(state).compact()
        options["state"] = str(state.resolve())
    if feedback is not None:
        FeedbackLog(feedback).expect_writable()
        options["feedback"] = str(feedback.resolve())
    with only_user(run, elsewhere):
        tidy(repository)
        expect_own(repository, f"*/{CONFIG}", elsewhere)
        remove(repository)
        write_repository(
            repository,
            release,
            served_steps(plan, one_process=settings.one_process),
            WIRE_REQUEST,
            wire_reply(plan),
            max_batch=settings.max_batch,
            delay_us=settings.delay_us,
            queue_ms=settings.queue_ms,
            instances=settings.processes,
            threads=settings.threads,
            beside=[step for step, has in ((Events.step(), state), (Feedback.step(), feedback)) if has],
            options=options,
        )
        with TritonServer(
            repository,
            log=run / "triton.log",
            host=settings.host,
            grpc_port=settings.grpc_port or None,
            http_port=settings.http_port or None,
            metrics_port=settings.metrics_port or None,
            startup_deadline_s=settings.startup_deadline_s,
        ) as server:
            yield server
