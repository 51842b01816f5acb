"""The command line. Commands import what they need when they run, so `pasar --help` answers at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import shlex
import signal
import sys
import time as clock
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A recommender for short-video and live-shopping feeds in many markets at once.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make a data set: your own, a simulated or a public one.")
app.add_typer(data_app, name="data")

REFUSED = 3
"""Exit code of a gate that refuses; 1 is an error, 2 a command that is none."""
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; by default pasar.toml of this folder, where there is one."),
]
OverwriteOption = Annotated[bool, typer.Option(help="Replace a data set that stands there.")]
ProtocolArgument = Annotated[
    str, typer.Argument(help="xmarket, taobao, tiktok, kuairand, gowalla, or dataset.")
]
ProtocolPath = Annotated[Path, typer.Option("--path", help="Folder of the public files, or of a data set.")]
RequestsOption = Annotated[int, typer.Option(help="Held-out requests that are played.", min=1)]
RowsOption = Annotated[Path | None, typer.Option("--json", help="Write the rows here.")]
UrlOption = Annotated[str, typer.Option(help="gRPC address of the server.")]


def _expected() -> tuple[type[Exception], ...]:
    """Errors written for people: their text is the message, a stack trace would hide it."""
    from ensemble.errors import RequestError
    from ensemble.repository import RepositoryError
    from ensemble.server import ServerError

    return (ValueError, OSError, RequestError, RepositoryError, ServerError)


_REMEDIES = {
    errno.ENOSPC: "make room and run it again",
    errno.EDQUOT: "make room and run it again",
    errno.EACCES: "give a place that you may read and write",
    errno.EPERM: "give a place that you may read and write",
    errno.EROFS: "give a place that can be written to",
}


def _told(error: Exception) -> str:
    """What is said of an error; of the system's own the file first, and what to do where that is plain."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    files = [str(file) for file in (error.filename, error.filename2) if file is not None]
    remedy = _REMEDIES.get(error.errno or 0)
    said = f"{' and '.join(files)}: {error.strerror}" if files else error.strerror
    return f"{said}; {remedy}" if remedy and ";" not in error.strerror else said


def _say_error(text: str) -> None:
    from rich.markup import escape

    from pasar.show import errors

    errors.print(f"[red]error:[/] {escape(text)}")


def _when_ended(act: Callable[[int, Any], object]) -> None:
    """Have `act` called where the process is terminated or its terminal closes, unless `nohup` forbids it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, act)


def main() -> None:
    """Entry point: expected errors end in one line and exit code 1; however it is ended, it cleans up."""
    _when_ended(lambda number, _: sys.exit(128 + number))
    warnings.filterwarnings("ignore")
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        app(standalone_mode=True)
    except _expected() as error:
        _say_error(_told(error))
        if os.environ.get("PASAR_TRACEBACK"):
            raise
        raise SystemExit(1) from None
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > 128:  # typer makes Ctrl-C such a code, too
            with contextlib.suppress(OSError):  # of a terminal that has closed
                _say_stopped(signal.Signals(ended.code - 128).name)
        raise


def _say_stopped(by: str) -> None:
    from pasar.show import errors

    errors.print(f"stopped by {by}; nothing is left half-written, a build or a search goes on when run again")


@app.command()
def config() -> None:
    """Print the commented settings file with every knob at its default."""
    from pasar.settings import render

    typer.echo(render(), nl=False)


@data_app.command("simulate")
def simulate(
    out: Annotated[Path, typer.Option("--out", help="Folder of the new data set.")],
    impressions: Annotated[
        int | None, typer.Option(help="Length of the log; by default as the settings say.")
    ] = None,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
) -> None:
    """Simulate a world and write its log as a data set."""
    import dataclasses

    from pasar.settings import load

    world = load(config).world
    if impressions is not None:
        world = dataclasses.replace(world, impressions=impressions)
    _simulate(world, out, overwrite)


def _simulate(config: Any, out: Path, overwrite: bool) -> Any:
    from market.world import World
    from pasar.show import counted

    with counted("simulating", config.impressions) as tell:
        dataset = World(config).write(out, tell, overwrite=overwrite)
    _describe(dataset)
    return dataset


def _describe(dataset: Any) -> None:
    from market.profiles import undeclared
    from pasar.show import say, warn

    rows = dataset.description.rows
    counts = ", ".join(f"{count:,} {table}" for table, count in rows.items())
    say(f"{dataset.path}: {dataset.name}, {counts}, markets {' '.join(dataset.markets)}")
    if remark := undeclared(dataset.markets):
        warn(remark)
    if empty := ", ".join(dataset.empty_markets):
        warn(f"no content may be shown in {empty}, so feeds stay empty there; see contents.markets")


@data_app.command()
def make(
    tables: Annotated[
        Path, typer.Option("--tables", help="Folder of users, contents, impressions and so on as Parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new data set.")],
    name: Annotated[str | None, typer.Option(help="Of the data set; by default the folder's.")] = None,
    feedback: Annotated[
        str, typer.Option(help="impressions, or positives where each row is something wanted.")
    ] = "impressions",
    split: Annotated[
        str,
        typer.Option(
            help="time, leave_last (of each user with three rows or more the last for test, the one before "
            "for validation) or given (by the column split)."
        ),
    ] = "time",
    overwrite: OverwriteOption = False,
) -> None:
    """Make a data set of your own tables, checked against the contract of market/tables.py."""
    from market.dataset import make_dataset
    from pasar.show import working

    with working(f"checking {tables}"):
        dataset = make_dataset(
            tables,
            out,
            name=name or tables.resolve().name,
            feedback=feedback,  # type: ignore[arg-type]  # checked with the tables
            split=split,  # type: ignore[arg-type]
            overwrite=overwrite,
        )
    _describe(dataset)


@data_app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="xmarket, taobao, tiktok, kuairand or gowalla.")],
    path: Annotated[
        Path, typer.Option("--path", help="Folder with the files as their publisher ships them.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new data set.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Import a public data set."""
    from market.dataset import write_tables
    from market.importers import read
    from pasar.show import working

    with working(f"reading {name}"):
        dataset = write_tables(out, read(name, path), overwrite=overwrite)
    _describe(dataset)


@data_app.command("extend")
def extend(
    data: Annotated[Path, typer.Option("--data", help="Folder of a data set; it stays as it is.")],
    log: Annotated[Path, typer.Option("--log", help="Folder of a feedback log.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new data set.")],
    tables: Annotated[
        Path | None,
        typer.Option("--tables", help="Folder of users, contents, sellers or moments as they are now."),
    ] = None,
    wait_hours: Annotated[
        float, typer.Option(min=0, max=87_600, help="How long an outcome may take; younger impressions wait.")
    ] = 24.0,
    late_days: Annotated[
        float,
        typer.Option(min=0, max=3_650, help="How far before its last impression late outcomes still count."),
    ] = 7.0,
    until: Annotated[
        str | None, typer.Option(help="ISO 8601 moment that counts as now, UTC unless it says otherwise.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Add what came back since to a data set: impressions that were shown, with what came of them."""
    from feedback.extend import extend
    from market.dataset import Dataset
    from pasar.show import counted, say, warn

    with counted("joining") as tell:
        made, taken = extend(
            Dataset.open(data),
            log,
            out,
            tables=tables,
            wait_s=round(wait_hours * 3600),
            late_s=round(late_days * 86_400),
            until=_moment(until, "--until"),
            overwrite=overwrite,
            progress=tell,
        )
    _describe(made)
    said = f"added {taken.rows:,} impressions, {taken.moments:,} moments, {taken.people:,} users"
    if taken.amended:
        said += f"; of {taken.amended:,} impressions that were there it is known by now what came"
    left = taken.why_left()
    say(f"{said}; of other impressions {left}" if left else said)
    for text in taken.remarks():
        warn(text)


@data_app.command("forget")
def forget(
    user: Annotated[list[str] | None, typer.Option(help="User id; give it again for more users.")] = None,
    users: Annotated[Path | None, typer.Option(help="File with a user id a line.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of a data set; it stays as it is.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the data set without them.")] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Folder of a feedback log; they are taken out of it.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Take people out of a data set and a feedback log, for who asks to be forgotten."""
    from feedback.forget import forget
    from feedback.log import FeedbackLog
    from market.dataset import Dataset
    from pasar.show import counted, say, warn

    lines = _lines(users) if users else []
    asked = {name for name in [*(user or ()), *lines] if name}
    if not asked:
        raise ValueError("nobody is named; give --user ID, or --users with a file of ids")
    if (data is None) != (out is None) or (data is None and log is None):
        raise ValueError("give a data set with --data and --out, a feedback log with --log, or both")
    kept = None if log is None else FeedbackLog.open(log)
    found: set[str] = set()
    if data is not None and out is not None:
        in_place = data.resolve() == out.resolve()
        made, found = forget(Dataset.open(data), asked, out, overwrite=overwrite)
        _describe(made)
        left = "" if in_place else f"; {data} has them until you delete it"
        say(f"{len(found):,} users are not in it{left}")
    if kept is not None:
        with counted("forgetting") as tell:
            there = kept.forget(asked, tell)
        say(f"{log} tells nothing of {len(there):,} users any more")
        found |= there
    if strangers := sorted(asked - found):
        few = ", ".join(map(repr, strangers[:5])) + (", ..." if len(strangers) > 5 else "")
        warn(f"{len(strangers):,} of {len(asked):,} users were nowhere: {few}")


def _lines(file: Path) -> list[str]:
    """The lines of a file of ids; they end with a line's end alone, and may hold what else ends lines."""
    try:
        return file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file} is not UTF-8 in line {line}; save it as UTF-8") from None


@app.command()
def build(
    data: Annotated[Path, typer.Option("--data", help="Folder of a data set.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the build; its release is OUT/release.")],
    before: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder of an earlier build: the ranker goes on from there and learns what is new."
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Build a release: features, training, export, report. A build that was killed goes on when run again."""
    from market.dataset import Dataset
    from pasar.settings import load

    _build(Dataset.open(data), out, load(config).build, before)


def _build(dataset: Any, out: Path, config: Any, before: Path | None = None) -> Any:
    from ensemble.blending import without_effect
    from ensemble.build import build_release
    from evaluation.report import offline_report
    from evaluation.runs import write_rows
    from pasar.show import console, reporter, say, warn
    from pasar.tables import report_table

    start = clock.monotonic()
    with reporter() as report:
        built = build_release(dataset, out, config, before=before, progress=report.training, step=report.step)
        report.step("report")
        rows = offline_report(built.release, built.data, queries_per_market=1000, seed=config.seed)
        write_rows(out / "report.json", rows)
    if rows:
        console.print(report_table(rows))
    else:
        warn("nothing in the test part of the log was wanted, so the report is empty")
    for text in without_effect(built.release):
        warn(text)
    say(f"release {out / 'release'} in {clock.monotonic() - start:.0f} s; report {out / 'report.json'}")
    return built


def _play(world: Any, built: Any, seed: int) -> None:
    """Judge a release by the truth of the world that its log came from."""
    from evaluation.closed_loop import Player, held_out_requests, play
    from market.world import World
    from pasar.show import console, working
    from pasar.tables import played_table

    examples = built.data.examples
    requests = held_out_requests(examples, 2000, seed=seed)
    played = World(world)
    player = Player(built.release, examples, played, requests.begin, seed=seed)
    policies = {
        "popularity": player.popularity,
        "two-tower": player.two_tower,
        "cascade": player.cascade_slate,
    }
    with working(f"playing {len(requests):,} requests"):
        rows = play(played, policies, requests, data_set=examples.name, seed=seed)
    console.print(played_table(rows, len(requests)))


def _write_rows(file: Path | None, rows: Sequence[Any]) -> None:
    """Write rows as JSON where a file is named for them."""
    from evaluation.runs import write_rows

    if file:
        write_rows(file, rows)


@app.command()
def adjust(
    release: Annotated[Path, typer.Option("--release", help="Folder of a release; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new release.")],
    config: ConfigOption = None,
) -> None:
    """Make a release of the same models with other knobs, such as weights, quotas, caps; no training."""
    from ensemble.adjust import adjust
    from ensemble.blending import without_effect
    from pasar.settings import load_cascade
    from pasar.show import say, warn

    made = adjust(release, out, load_cascade(config))
    for knob, (old, new) in made.changed.items():
        say(f"{knob}: {_knob(old)} -> {_knob(new)}")
    for text in without_effect(made.release):
        warn(text)
    if made.since_taught:
        learned = ", ".join(f"{knob} {_knob(old)}" for knob, (old, _) in made.since_taught.items())
        say(
            f"{' and '.join(made.learners)} learned with {learned}: values and order of the slate go by the "
            "new knobs, but what is worth much by them alone may not reach the ranker; `pasar build` teaches "
            "anew"
        )
    move = f"pasar reload --release {shlex.quote(str(out))} --run RUN"
    say(f"release {out} ({made.release.name}); `{move}` moves the server that works in RUN to it")


def _knob(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


@app.command()
def serve(
    release: Annotated[Path, typer.Option("--release", help="Folder of a release.")],
    run: Annotated[
        Path | None,
        typer.Option(help="Where repository and log go; by default RELEASE/../serving."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder of the live state; without it no events are taken in.")
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(help="Folder of the feedback log; without it the server takes no feedback in."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Serve a release on Triton until interrupted; a new release is taken with `pasar reload`."""
    import threading

    from ensemble.serving import serve_release
    from pasar.settings import load_serve
    from pasar.show import say, warn

    settings = load_serve(config)
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    _when_ended(lambda *_: stop.set())
    folder = run or release.absolute().parent / "serving"  # of ".", too, which has itself as a parent
    with serve_release(release, folder, settings, state, feedback, warn=warn) as server, server.watch():
        say(
            f"serving {release} at {server.grpc_url} (gRPC), {server.http_url} (HTTP), "
            f"{server.metrics_url}/metrics; Ctrl-C stops"
        )
        server.wait(stop)
    say("stopped")


@app.command()
def gate(
    release: Annotated[Path, typer.Option("--release", help="Folder of the release that would be served.")],
    against: Annotated[Path, typer.Option("--against", help="Folder of the release that is served.")],
    data: Annotated[Path, typer.Option("--data", help="Data set whose last rows neither learned from.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the checks here.")] = None,
    seed: Annotated[int, typer.Option(help="Of which queries and people are asked.")] = 0,
    config: ConfigOption = None,
) -> None:
    """Compare a release with the one that is served; ends with exit code 3 where it would lose too much."""
    import tempfile

    from ensemble.plan import Plan
    from ensemble.release import Release
    from evaluation.gates import faults
    from evaluation.gates import gate as compare
    from market.dataset import Dataset
    from pasar.settings import load
    from pasar.show import console, reporter, say
    from pasar.tables import check_table
    from workflows.examples import build_examples

    settings = load(config)
    candidate, served = Release.open(release), Release.open(against)
    length = max(Plan.of(one).history_length for one in (candidate, served))
    with tempfile.TemporaryDirectory(prefix="pasar-gate-") as folder, reporter() as report:
        report.step("examples")
        examples = build_examples(
            Dataset.open(data),
            Path(folder),
            history_length=length,
            seen_length=length,
            live_window_s=settings.build.live_window_s,
            split=settings.build.split,
        )
        checks = compare(candidate, served, examples, settings.gate, seed=seed, step=report.step)
    console.print(check_table(checks))
    _write_rows(json_file, checks)
    if found := faults(checks):
        _say_error(f"{release} must not replace {against}: {'; '.join(found)}")
        raise typer.Exit(REFUSED)
    say(f"{release} may replace {against}")


@app.command()
def reload(
    release: Annotated[Path, typer.Option("--release", help="Folder of the new release.")],
    run: Annotated[Path, typer.Option(help="The folder that `pasar serve` works in.")],
    url: UrlOption = "127.0.0.1:8001",
    config: ConfigOption = None,
) -> None:
    """Move a running server to another release; a damaged one is refused and the running one stays."""
    from ensemble.blending import Blend
    from ensemble.cascade import Cascade, served_steps
    from ensemble.plan import Plan
    from ensemble.release import Release
    from ensemble.repository import add_version, models, read_option
    from ensemble.stages.events import Events
    from ensemble.stages.feedback import Feedback
    from ensemble.steering import without_effect
    from ensemble.wire import WIRE_REQUEST, wire_reply
    from pasar.settings import load_serve
    from pasar.show import say, warn
    from supply.rules import Rules

    opened = Release.open(release)
    plan, repository = Plan.of(opened), run / "repository"
    Blend(opened)  # refuses weights under which nothing is worth showing
    if not models(repository):
        raise ValueError(f"no `pasar serve` works in {run}; give its --run, by default RELEASE/../serving")
    steps = served_steps(plan, one_process=Cascade.name in models(repository))
    beside = [step for step in (Events.step(), Feedback.step()) if step.name in models(repository)]
    version = add_version(
        repository,
        release,
        steps,
        WIRE_REQUEST,
        wire_reply(plan),
        url=url,
        deadline_s=load_serve(config).startup_deadline_s,
        beside=beside,
    )
    # A catalogue that has lost a category is no reason to stay with the old release.
    for text in without_effect(opened, Rules(**json.loads(read_option(repository, "rules", "{}")))):
        warn(text)
    say(f"serving {release} ({opened.name}) as version {version}")


@app.command()
def live(
    file: Annotated[str, typer.Argument(help="JSON lines, an event each; - reads standard input.")],
    state: Annotated[Path, typer.Option(help="The folder that `pasar serve --state` reads.")],
    feedback: Annotated[
        Path | None, typer.Option(help="The folder that `pasar serve --feedback` has, to remember them.")
    ] = None,
) -> None:
    """Take events in: rooms that open or end, viewers, stock, what is taken down. A wrong line ends it."""
    from feedback.log import FeedbackLog, expect_apart
    from pasar.show import say
    from supply.events import parse
    from supply.journal import Journal

    if feedback is not None:
        expect_apart(feedback, state)
    journal, log = Journal(state), None if feedback is None else FeedbackLog(feedback)

    def take(events: list[dict[str, Any]]) -> None:
        journal.append(events)
        if log is not None:
            log.append(events)

    say(f"{_take_in(file, 'events', parse, take):,} events in {journal.path}")


@app.command("feedback")
def take_feedback(
    file: Annotated[str, typer.Argument(help="JSON lines, a record each; - reads standard input.")],
    log: Annotated[Path, typer.Option(help="Folder of the feedback log.")],
) -> None:
    """Take feedback in: what was shown, and what came of it. A wrong line ends it."""
    from feedback.log import FeedbackLog
    from feedback.records import parse
    from pasar.show import say

    kept = FeedbackLog(log)
    say(f"{_take_in(file, 'records', parse, kept.append):,} records in {kept.folder}")


@app.command()
def readout(
    log: Annotated[Path, typer.Option("--log", help="Folder of a feedback log.")],
    since: Annotated[
        str | None, typer.Option(help="ISO 8601 moment of the first request, UTC unless it says otherwise.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="ISO 8601 moment that counts as now.")] = None,
    wait_hours: Annotated[
        float, typer.Option(min=0, max=87_600, help="How long an outcome may take; younger requests wait.")
    ] = 24.0,
    over: Annotated[
        str | None,
        typer.Option(help="Release from which others differ; by default from the one that was served first."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """What slates were worth to people, release by release, and over the release that was served beside."""
    from evaluation.readout import readout as read
    from feedback.log import FeedbackLog
    from pasar.show import console, counted, warn
    from pasar.tables import readout_tables

    kept = FeedbackLog.open(log)
    with counted("reading") as tell:
        made = read(
            kept,
            since=0 if since is None else _moment(since, "--since"),
            until=_moment(until, "--until") - round(wait_hours * 3600),
            over=over,
            progress=tell,
        )
    for table in readout_tables(made):
        console.print(table)
    _write_rows(json_file, made.figures)
    for text in made.remarks():
        warn(text)


def _take_in(file: str, what: str, parse: Callable[[Any, float], Any], take: Callable[[list], None]) -> int:
    """Have what the lines of a file say taken in as it comes; how many said something."""
    from supply.events import EventError, parse_all

    taken = number = 0
    with contextlib.ExitStack() as opened:
        # Bytes, so that a line that is no UTF-8 is refused by its number as other wrong ones are.
        lines = sys.stdin.buffer if file == "-" else opened.enter_context(Path(file).open("rb"))
        # Lines of a file come many at once; those of a pipe count from the moment they are written.
        while batch := list(itertools.islice(lines, 1 if file == "-" else 1000)):
            try:
                events = parse_all(batch, clock.time(), first=number + 1, parse=parse)
            except EventError as error:
                raise EventError(
                    f"{error}; the {taken:,} {what} before line {number + 1} were taken in"
                ) from None
            take(events)
            number += len(batch)
            taken += len(events)
    return taken


@app.command()
def feed(
    market: Annotated[str, typer.Option(help="Code of a market that the release serves.")],
    user: Annotated[list[str], typer.Option(help="User id; give it again for more users.")],
    time: Annotated[
        str | None,
        typer.Option(help="ISO 8601 moment, UTC unless it says otherwise; by default now."),
    ] = None,
    history: Annotated[list[str] | None, typer.Option(help="Content wanted in this session.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Content never to be shown.")] = None,
    exclude_seller: Annotated[
        list[str] | None, typer.Option(help="Seller none of whose contents are to be shown.")
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Language that the person reads now, the own one first; by default all."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="video, live or product, those asked for; by default all.")
    ] = None,
    category: Annotated[list[str] | None, typer.Option(help="Category asked for; by default all.")] = None,
    exclude_category: Annotated[
        list[str] | None, typer.Option(help="Category of which nothing is to be shown.")
    ] = None,
    shown: Annotated[
        list[str] | None, typer.Option(help="Content shown lately; again for each exposure.")
    ] = None,
    diversity: Annotated[float | None, typer.Option(help="0 (value alone) to 1 (difference alone).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what exploration draws.")] = None,
    url: UrlOption = "127.0.0.1:8001",
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what became of all candidates, stage by stage.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a running server for feeds and print each slate: stage, scores and reason of every item."""
    import dataclasses

    from ensemble.client import DIVERSITY, FeedRequest, connect
    from pasar.show import console, explanation_tables, slate_tables

    asked = FeedRequest(
        "",
        market,
        _moment(time),
        tuple(history or ()),
        tuple(exclude or ()),
        tuple(shown or ()),
        DIVERSITY if diversity is None else diversity,
        seed,
        explain,
        tuple(exclude_seller or ()),
        tuple(language or ()),
        tuple(kind or ()),
        tuple(category or ()),
        tuple(exclude_category or ()),
    )
    requests = [dataclasses.replace(asked, user=name) for name in user]
    with connect(url) as client:
        slates = client.feed(requests)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(slate) for slate in slates], indent=1))
        return
    for request, slate in zip(requests, slates):
        for table in slate_tables(request, slate, console.width):
            console.print(table)
        if slate.explanation:
            for table in explanation_tables(slate.explanation):
                console.print(table)


def _moment(text: str | None, option: str = "--time") -> int:
    if text is None:
        return int(clock.time())
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"{option} {text!r} is not ISO 8601; write 2026-03-15T20:30") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp())


@app.command()
def evaluate(
    protocol: ProtocolArgument,
    path: ProtocolPath,
    market: Annotated[list[str] | None, typer.Option(help="Only this market; may be given again.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Only this one of the protocol's benchmarks.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Learn each market from itself alone.")] = False,
    seed: Annotated[list[int] | None, typer.Option(help="Of our models; may be given again.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds that run side by side.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here, whenever a seed is done.")
    ] = None,
    baselines_only: Annotated[bool, typer.Option(help="Leave our models out.")] = False,
    config: ConfigOption = None,
) -> None:
    """Judge baselines and the cascade by a benchmark's protocol, beside its published figures."""
    from evaluation.command import run_protocol
    from evaluation.runs import table
    from pasar.settings import load_build
    from pasar.show import reporter, say, warn

    with reporter() as report:
        rows = run_protocol(
            protocol,
            path,
            markets=tuple(market or ()),
            benchmark=benchmark,
            each_alone=alone,
            seeds=tuple(seed or (0,)),
            build=None if baselines_only else load_build(protocol, config),
            jobs=jobs,
            step=report.step,
            training=report.training,
            keep=lambda rows: _write_rows(json_file, rows),
            told=warn,
        )
    say(table(rows))


@app.command()
def tune(
    protocol: ProtocolArgument,
    path: ProtocolPath,
    minutes: Annotated[float, typer.Option(help="No trial begins after them.", min=0)] = 30,
    only: Annotated[
        list[str] | None, typer.Option(help="Search this section's knobs; may be given again.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="One of the protocol's benchmarks; by default its first.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="File of all trials; by default runs/tune/PROTOCOL.journal.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of every build.")] = 0,
    config: ConfigOption = None,
) -> None:
    """Search better knobs for a data set, judged on its validation part; run again to go on."""
    from evaluation.command import chosen, load_tables
    from evaluation.protocols import benchmarks
    from evaluation.tuning import Trial, with_knobs
    from evaluation.tuning import tune as search
    from pasar.settings import load_build, render_changed
    from pasar.show import reporter, say, warn

    found = chosen(benchmarks(load_tables(protocol, path), stage="valid"), benchmark)
    for remark in found[0].remarks:
        warn(remark)
    if others := ", ".join(repr(other.task.name) for other in found[1:]):
        say(f"judged by {found[0].task.name!r}; --benchmark chooses another: {others}")
    build = load_build(protocol, config)

    def told(trial: Trial) -> None:
        knobs = "  ".join(f"{knob} {value:.4g}" for knob, value in trial.knobs.items())
        if trial.fault:
            warn(f"no value, {trial.fault}: {knobs}")
        else:
            say(f"{trial.value:.4f}  {trial.seconds:.0f} s  {knobs}")

    with reporter() as report:
        trials = search(
            found[0],
            build,
            journal or Path("runs/tune") / f"{protocol}.journal",
            minutes=minutes,
            sections=tuple(only or ()),
            seed=seed,
            told=told,
            training=report.training,
        )
    if trials:
        best = render_changed(with_knobs(build, trials[0].knobs))
        say(f"the best of {len(trials)}, {trials[0].value:.4f}:\n\n{best}")
    else:
        say("no trial began; give more --minutes")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="features, retrieval, serving, training or growth.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Size of the data; each has its own default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the data.")] = 0,
) -> None:
    """Run a benchmark beside its peers, which are installed under ~/.cache/pasar-peers; see benchmarks/."""
    from importlib import import_module

    from benchmarks import NAMES
    from benchmarks.harness import table

    if name not in NAMES:
        raise ValueError(f"there is no benchmark {name!r}; there are: {', '.join(NAMES)}")
    module = import_module(f"benchmarks.{name}")
    size = {} if rows is None else {"rows": rows}
    results = module.run(
        **size, repeats=repeats, seed=seed, file=json_file, report=lambda line: typer.echo(line, err=True)
    )
    typer.echo(table(results))


@app.command()
def ablate(
    out: Annotated[Path, typer.Option("--out", help="Folder of the log and the releases.")] = Path(
        "runs/ablation"
    ),
    requests: RequestsOption = 4000,
    validation: Annotated[
        bool, typer.Option("--validation", help="Play the validation days, on which choices are made.")
    ] = False,
    markets: Annotated[
        bool, typer.Option(help="Also build a release that is blind to markets, and one for each market.")
    ] = True,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Of the builds, [build]'s by default; more give means over trainings."),
    ] = None,
    json_file: RowsOption = None,
    config: ConfigOption = None,
) -> None:
    """What each part of the cascade is worth in the simulated world, with confidence intervals."""
    import dataclasses

    from evaluation.ablations import FULL, ablate_training
    from evaluation.closed_loop import held_out_requests
    from market.world import World
    from pasar.settings import load
    from pasar.show import console, reporter
    from pasar.tables import compared_table
    from workflows.examples import TEST, VALID

    settings = load(config)
    play = settings.build.seed
    builds = [dataclasses.replace(settings.build, seed=each) for each in dict.fromkeys(seed or [play])]
    dataset = _simulate(settings.world, out / "data", overwrite=True)
    world, rows = World(settings.world), []
    split, days = (VALID, "validation") if validation else (TEST, "test")
    for build in builds:
        folder = out / f"seed-{build.seed}"
        built = _build(dataset, folder, build)
        asked = held_out_requests(built.data.examples, requests, seed=play, split=split)
        with reporter() as report:
            rows += ablate_training(
                built,
                dataset,
                world,
                asked,
                build,
                folder,
                markets=markets,
                seed=play,
                progress=report.training,
                step=report.step,
            )
        _write_rows(json_file, rows)
    console.print(compared_table(f"{len(asked):,} requests of the {days} days", rows, FULL))


@app.command("cold-market")
def cold_market(
    market: Annotated[str, typer.Argument(help="Code of the market whose log is taken away.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the logs and the releases.")] = Path(
        "runs/cold-market"
    ),
    requests: RequestsOption = 4000,
    json_file: RowsOption = None,
    config: ConfigOption = None,
) -> None:
    """What a market is worth that training never saw, beside itself with its log, in the simulated world."""
    from evaluation.cold_market import cold_market
    from pasar.show import console
    from pasar.tables import compared_table

    def judge(world: Any, build: Any, **told: Any) -> list:
        return cold_market(world, market, build, out, requests=requests, **told)

    rows = _judged(judge, config)
    played = max(row.users for row in rows)
    console.print(compared_table(f"{market}, {played:,} users on the test days", rows, rows[0].system))
    _write_rows(json_file, rows)


@app.command()
def loop(
    out: Annotated[Path, typer.Option("--out", help="Folder of the logs and the releases.")] = Path(
        "runs/loop"
    ),
    requests: RequestsOption = 4000,
    json_file: RowsOption = None,
    config: ConfigOption = None,
) -> None:
    """What feedback is worth in the simulated world: a release serves, and learns from what came of it."""
    from evaluation.feedback_loop import feedback_loop
    from pasar.show import console
    from pasar.tables import compared_table

    def judge(world: Any, build: Any, **told: Any) -> list:
        return feedback_loop(world, build, out, requests=requests, **told)

    rows = _judged(judge, config)
    played = max(row.users for row in rows)
    console.print(compared_table(f"{played:,} users on the test days", rows, rows[0].system))
    _write_rows(json_file, rows)


def _judged(judge: Callable[..., list], config: Path | None) -> list:
    """Rows of a judge that builds in the simulated world."""
    from pasar.settings import load
    from pasar.show import reporter

    settings = load(config)
    with reporter() as report:
        told = {"seed": settings.build.seed, "progress": report.training, "step": report.step}
        return judge(settings.world, settings.build, **told)


@app.command("ablate-ranker")
def ablate_ranker(
    out: Annotated[Path, typer.Option("--out", help="Folder of the log and its features.")] = Path(
        "runs/ablation-ranker"
    ),
    seed: Annotated[list[int] | None, typer.Option(help="May be given again; 1, 2 and 3 by default.")] = None,
    json_file: RowsOption = None,
    config: ConfigOption = None,
) -> None:
    """What each part of the ranker is worth: validation AUCs in the simulated world, over seeds."""
    from ensemble.build import build_training_set
    from evaluation.ranker_ablations import ablate_ranker
    from pasar.settings import load
    from pasar.show import console, reporter
    from pasar.tables import rankers_table

    settings = load(config)
    dataset = _simulate(settings.world, out / "data", overwrite=True)
    with reporter() as report:
        data = build_training_set(dataset, out / "work", settings.build, step=report.step)
        report.step("rankers")
        seeds = seed or (1, 2, 3)
        rows = list(ablate_ranker(data, settings.build.ranker, seeds, report.training))
    console.print(rankers_table(rows, len(set(seeds))))
    _write_rows(json_file, rows)


@app.command()
def doctor() -> None:
    """Say what was found on this machine, and what to do about what is missing."""
    from pasar.doctor import examine
    from pasar.show import console, rows_table

    found = examine()
    console.print(rows_table("pasar doctor", ["what", "found", "what to do"], [list(row) for row in found]))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of everything the demo makes.")] = Path(
        "runs/demo"
    ),
    config: ConfigOption = None,
) -> None:
    """The main job on a simulated world: log, features, training, release, Triton server, five feeds."""
    import dataclasses

    from ensemble.client import FeedRequest, connect
    from ensemble.serving import serve_release
    from pasar.settings import load
    from pasar.show import console, say, slate_tables, warn

    settings = load(config)
    start = clock.monotonic()
    dataset = _simulate(settings.world, out / "data", overwrite=True)
    built = _build(dataset, out, settings.build)
    _play(settings.world, built, settings.build.seed)
    examples = built.data.examples
    # Ask for two people of each market with a past, at the end of the log.
    active = (examples.latest_history >= 0).sum(axis=1)
    users = examples.users.assign(active=active).sort_values("active", ascending=False, kind="stable")
    chosen = users.groupby("market", sort=True).head(2)
    free = dataclasses.replace(settings.serve, grpc_port=0, http_port=0, metrics_port=0)
    with serve_release(out / "release", out / "serving", free, warn=warn) as server:
        say(f"Triton serves {out / 'release'} at {server.grpc_url}")
        with connect(server.grpc_url) as client:
            for market, people in chosen.groupby("market"):
                requests = [FeedRequest(user, str(market), examples.end) for user in people["user_id"]]
                slates = client.feed(requests)
                for table in slate_tables(requests[0], slates[0], console.width):
                    console.print(table)
                common = {i.content for i in slates[0].items} & {i.content for i in slates[1].items}
                say(
                    f"{requests[1].user} of {market} gets {len(slates[1].items)} others, "
                    f"{len(common)} of them the same\n"
                )
    say(f"server stopped; the demo took {clock.monotonic() - start:.0f} s")
