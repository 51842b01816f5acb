"""The command line does the whole job, says errors in one line, and cleans up after itself."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from rich.progress import Progress

import ensemble.repository
import ensemble.serving
from ensemble.cascade import Cascade
from ensemble.client import FeedClient, FeedRequest, connect, pack
from ensemble.errors import RequestError
from ensemble.plan import Plan
from ensemble.release import Release, ReleaseWriter
from evaluation.closed_loop import EXPECTED
from evaluation.runs import Row
from feedback.log import FeedbackLog
from feedback.records import outcome, shown
from market.dataset import Dataset
from market.world import WorldConfig
from pasar import cli
from pasar.settings import render
from supply.journal import Tail
from tests.ensemble import synthetic
from tests.market.test_dataset import part, write

COMMAND = [sys.executable, "-c", "from pasar.cli import main; main()"]
CHATTER = re.compile(r"oneDNN|cpu_feature_guard|grappler|tensorflow/core|Warning|Traceback")


@pytest.fixture
def pasar(monkeypatch, capsys):
    """Runs a command in this process: exit code, what it printed, what it said went wrong."""

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pasar", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    yield run
    for number, handler in handlers.items():  # `serve` takes them over
        signal.signal(number, handler)


def one_line(text):
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    return text


def test_config_prints_the_settings_file(pasar):
    assert pasar("config") == (0, render(), "")


def test_doctor_reports_this_machine_and_nothing_else():
    said = subprocess.run([*COMMAND, "doctor"], capture_output=True, text=True, check=False)
    assert said.returncode == 0
    for what in ("Python", "GPU", "Merlin imports", "Triton"):
        assert what in said.stdout
    assert said.stderr == ""
    assert not CHATTER.search(said.stdout)


def test_a_world_is_simulated_into_a_data_set_that_stays(pasar, tmp_path):
    settings = tmp_path / "pasar.toml"
    settings.write_text("[world]\nmarkets = ['ID', 'GB']\nusers = 40\ncontents = 60\nsellers = 8\ndays = 2\n")
    command = ["data", "simulate", "--out", tmp_path / "data", "--impressions", "300", "--config", settings]
    code, out, err = pasar(*command)
    assert (code, err) == (0, "")
    assert "300 impressions" in out
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.markets == ["GB", "ID"]
    rows = {"users": 40, "contents": 60, "sellers": 8, "impressions": 300}
    assert dataset.description.rows == rows | {"moments": len(dataset.moments())}
    code, _, err = pasar(*command)
    assert code == 1
    assert "exists; choose another folder" in one_line(err)
    assert pasar(*command, "--overwrite")[0] == 0


def test_the_bar_of_a_simulation_tells_the_impressions_logged_so_far(tmp_path, monkeypatch):
    shown = []
    update = Progress.update

    def noted(self, *arguments, **options):
        update(self, *arguments, **options)
        shown.append((self.tasks[0].completed, self.tasks[0].total))

    monkeypatch.setattr(Progress, "update", noted)
    world = WorldConfig(users=60, contents=60, sellers=8, days=2, impressions=900)
    dataset = cli._simulate(world, tmp_path / "data", False)
    assert shown[-1][0] == dataset.description.rows["impressions"]
    assert all(before < after for (before, _), (after, _) in pairwise(shown))


def test_a_public_data_set_that_is_not_known_is_refused_with_those_that_are(pasar, tmp_path):
    code, _, err = pasar("data", "import", "netflix", "--path", tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert "kuairand" in one_line(err)


def test_a_market_without_a_profile_is_imported_with_a_warning(pasar, tmp_path):
    for market in ("nl", "de"):
        text = "userId itemId rate date\nA X 5 2020-01-02\n"
        (tmp_path / f"{market}_5core.txt").write_text(text)
    code, said, err = pasar("data", "import", "xmarket", "--path", tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert "markets DE NL" in " ".join(said.split())
    assert "warning: no profile of NL in market/profiles.py" in " ".join(err.split())


def test_a_market_of_users_alone_is_made_with_a_warning(pasar, tmp_path):
    tables = {
        "users": {"user_id": ["u", "v"], "market": ["ID", "GB"]},
        "contents": {"content_id": ["c"], "kind": ["video"], "markets": [["ID", "VN"]]},
        "impressions": {"user_id": ["u"], "content_id": ["c"], "market": ["ID"], "time": [1], "click": [1]},
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_parquet(tmp_path / f"{name}.parquet")
    code, _, err = pasar("data", "make", "--tables", tmp_path, "--out", tmp_path / "out")
    assert code == 0
    said = "warning: no content may be shown in GB, so feeds stay empty there; see contents.markets"
    assert " ".join(err.split()) == said


def test_a_knob_that_does_not_exist_is_said_with_a_near_one(pasar, tmp_path):
    settings = tmp_path / "mine.toml"
    settings.write_text("[world]\nuser = 3\n")
    code, out, err = pasar("data", "simulate", "--out", tmp_path / "data", "--config", settings)
    assert (code, out) == (1, "")
    assert "'user' is no knob; did you mean 'users'?" in one_line(err)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["build", "serve"])
def test_a_folder_that_is_not_what_a_command_needs_is_named(pasar, tmp_path, command):
    option = {"build": ["--data", tmp_path / "none", "--out", tmp_path], "serve": ["--release", tmp_path]}
    code, _, err = pasar(command, *option[command])
    assert code == 1
    assert str(tmp_path) in one_line(err)


def test_a_market_that_is_not_in_the_world_cannot_be_taken_away(pasar, tmp_path):
    code, _, err = pasar("cold-market", "MX", "--out", tmp_path / "cold")
    assert code == 1
    assert "no market 'MX' in the world; there are ID, VN, GB, DE, BR" in one_line(err)


def test_a_folder_that_cannot_be_written_is_said_in_one_line(pasar, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = pasar("data", "simulate", "--out", tmp_path / "file" / "data", "--impressions", "100")
    assert code == 1
    one_line(err)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "; make room and run it again"),
        (errno.EACCES, "; give a place that you may read and write"),
        (errno.EROFS, "; give a place that can be written to"),
        (errno.ENOENT, ""),
    ],
)
def test_what_the_system_refuses_is_told_by_the_file_and_with_what_to_do(
    pasar, tmp_path, monkeypatch, number, remedy
):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path / "data"))

    monkeypatch.setattr("market.dataset.make_dataset", refused)
    code, _, err = pasar("data", "make", "--tables", tmp_path, "--out", tmp_path / "data")
    assert code == 1
    assert err == f"error: {tmp_path / 'data'}: {os.strerror(number)}{remedy}\n"


def test_a_file_of_ids_that_is_no_utf_8_is_named_with_the_line(pasar, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"ana\nb\xf6rn\n")
    FeedbackLog(tmp_path / "log")
    code, _, err = pasar("data", "forget", "--users", tmp_path / "ids.txt", "--log", tmp_path / "log")
    assert code == 1
    assert one_line(err) == f"error: {tmp_path / 'ids.txt'} is not UTF-8 in line 2; save it as UTF-8\n"


def test_a_folder_in_which_no_server_works_is_named(pasar, tmp_path):
    release = synthetic.release(tmp_path, 3).path
    code, _, err = pasar("reload", "--release", release, "--run", tmp_path)
    assert code == 1
    assert f"no `pasar serve` works in {tmp_path}; give its --run" in one_line(err)


def test_what_moves_a_server_can_be_pasted_into_a_shell(pasar, tmp_path, monkeypatch):
    release, out = synthetic.release(tmp_path, 5), tmp_path / "my shop's"
    config = Plan.of(release).config
    knobs = dataclasses.replace(config, seller_cap=config.seller_cap + 1)
    monkeypatch.setattr("pasar.settings.load_cascade", lambda path: knobs)
    code, said, err = pasar("adjust", "--release", release.path, "--out", out)
    assert (code, err) == (0, "")
    command = shlex.split(said.rpartition("; `")[2].partition("`")[0])
    assert command == ["pasar", "reload", "--release", str(out), "--run", "RUN"]


def test_where_no_server_answers_feed_says_what_to_do(pasar):
    code, out, err = pasar("feed", "--market", "ID", "--user", "ana", "--url", "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert "start `pasar serve`" in one_line(err)


@pytest.mark.parametrize("moment", ["yesterday", "2026-13-01"])
def test_a_moment_that_is_no_date_is_refused(pasar, moment):
    code, _, err = pasar("feed", "--market", "ID", "--user", "ana", "--time", moment)
    assert code == 1
    assert f"--time '{moment}' is not ISO 8601" in one_line(err)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-03-15T20:30", 1_773_606_600),
        ("2026-03-15T20:30Z", 1_773_606_600),
        ("2026-03-15T22:30+02:00", 1_773_606_600),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text, seconds):
    assert cli._moment(text) == seconds


@pytest.mark.slow
def test_build_reports_every_market_and_says_nothing_else(command_build):
    said = command_build.said
    assert said.stderr == ""
    assert not CHATTER.search(said.stdout), said.stdout
    for text in ("GB", "ID", "recall@20", "cascade", "release build/release in"):
        assert text in said.stdout
    report = json.loads((command_build.release.path.parent / "report.json").read_text())
    assert {row["market"] for row in report["rows"]} == {"GB", "ID"}


@pytest.mark.slow
def test_a_build_that_nothing_can_be_asked_of_says_so(
    pasar, small_build, small_world_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("ensemble.build.build_release", lambda *_, **__: small_build.built)
    monkeypatch.setattr("evaluation.report.offline_report", lambda *_, **__: [])
    (tmp_path / "build").mkdir()
    code, out, err = pasar("build", "--data", small_world_dataset.path, "--out", tmp_path / "build")
    assert code == 0
    assert "so the report is empty" in " ".join(err.split())
    assert "Held-out outcomes" not in out


@pytest.mark.slow
def test_a_build_goes_on_from_the_one_it_is_given_and_says_where_nothing_is_new(
    pasar, small_build, small_world_dataset, tmp_path
):
    command = ["build", "--data", small_world_dataset.path, "--out", tmp_path / "next"]
    command += ["--config", small_build.folder / "pasar.toml", "--from"]
    code, _, err = pasar(*command, small_build.folder / "build")
    assert code == 1
    assert "no training row after those of the earlier build" in one_line(err)
    code, _, err = pasar(*command, tmp_path)
    assert code == 1
    assert f"{tmp_path} is no folder of a build" in one_line(err)


@pytest.mark.slow
def test_feed_prints_each_slate_as_a_table(pasar, feed_server, small_release):
    user = str(small_release.array("user_id.npy")[0])
    command = ["feed", "--market", "ID", "--user", user, "--user", "[/nobody]", "--url", feed_server.grpc_url]
    code, out, err = pasar(*command, "--time", "2026-03-08T12:00")
    assert (code, err) == (0, "")
    for text in (f"ID  {user}", "ID  [/nobody]", "retrieved by", "two-tower", "reason", "click"):
        assert text in out


@pytest.mark.slow
def test_feed_explains_the_funnel_and_the_items_when_asked(pasar, feed_server):
    command = ["feed", "--market", "ID", "--user", "ana", "--url", feed_server.grpc_url]
    code, out, err = pasar(*command, "--time", "2026-03-08T12:00", "--explain")
    assert (code, err) == (0, "")
    for text in ("The funnel", "retrieval", "pre-ranking", "reordering", "ms", "Its items", "Left out"):
        assert text in out
    assert "The funnel" not in pasar(*command)[1]


@pytest.mark.slow
def test_feed_prints_json_that_equals_the_server_s_reply(pasar, feed_server, small_release):
    texts = [str(text) for text in small_release.array("text_content_id.npy")[:4]]
    user = str(small_release.array("user_id.npy")[1])
    command = ["feed", "--json", "--market", "GB", "--user", user, "--url", feed_server.grpc_url]
    command += ["--history", texts[0], "--history", texts[1], "--exclude", texts[2], "--exclude", texts[3]]
    kind, category = (small_release.array(f"text_{name}.npy") for name in ("kind", "category"))
    sold = small_release.array("available.npy")[Plan.of(small_release).markets.index("GB")]
    (category, _), (other, _), *_ = Counter(category[sold & (kind == "video")].tolist()).most_common()
    wishes = {"kind": "video", "category": category, "exclude-category": other, "language": "en"}
    command += [word for name, value in wishes.items() for word in (f"--{name}", value)]
    code, out, err = pasar(*command, "--time", "2026-03-08T12:00Z", "--diversity", "0.6")
    assert (code, err) == (0, "")
    request = FeedRequest(
        *(user, "GB", 1_772_971_200, texts[:2], texts[2:]),
        diversity=0.6,
        kinds=["video"],
        categories=[category],
        exclude_categories=[other],
        languages=["en"],
    )
    with connect(feed_server.grpc_url) as client:
        (slate,) = client.feed([request])
    (printed,) = json.loads(out)
    assert [item["content"] for item in printed["items"]] == [item.content for item in slate.items]
    assert printed["items"][0]["probabilities"] == slate.items[0].probabilities
    kind = dict(zip(small_release.array("text_content_id.npy"), kind))
    assert {kind[item["content"]] for item in printed["items"]} == {"video"}
    assert not {item["content"] for item in printed["items"]} & set(texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [(["--market", "ZZ"], "unknown market 'ZZ'"), (["--diversity", "7"], "send 0 to 1")],
)
def test_feed_says_what_the_server_refused(pasar, feed_server, change, said):
    command = ["feed", "--market", "ID", "--user", "ana", "--url", feed_server.grpc_url, *change]
    code, out, err = pasar(*command)
    assert (code, out) == (1, "")
    assert said in one_line(err)


def group(leader):
    """Processes that a process started, itself left out."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == leader or int(fields[1]) in found:
                found.add(int(status.parent.name))
    return found


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[0]


class Serving:
    """`pasar serve` as a process of its own, on free ports."""

    def __init__(self, release, folder, one_process):
        self.run = folder / "run"
        (folder / "pasar.toml").write_text(
            f"[serve]\none_process = {one_process}\ngrpc_port = 0\nhttp_port = 0\nmetrics_port = 0\n"
        )
        command = [*COMMAND, "serve", "--release", str(release.path), "--run", str(self.run)]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = self.process.stdout.readline()
        self.url = re.search(r"at (\S+) \(gRPC\)", self.said)[1]

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate()


@pytest.fixture(params=["true", "false"], ids=["in one process", "each step a model"])
def serving(small_release, tmp_path, request):
    started = Serving(small_release, tmp_path, request.param)
    yield started
    if started.process.poll() is None:
        started.stop()


def served_vectors(url, release):
    """Retrieval scores of one fixed request, which tell releases apart."""
    request = FeedRequest("nobody", "ID", Cascade(release).plan.as_of)
    with connect(url) as client:
        return [item.retrieval_score for item in client.feed([request])[0].items]


def expected_vectors(release):
    cascade = Cascade(release)
    made = cascade(pack([FeedRequest("nobody", "ID", cascade.plan.as_of)]))
    return made["slate_retrieval_score"][0].tolist()


@pytest.fixture
def no_server(monkeypatch):
    """`pasar serve` without a server: it writes the repository and ends."""

    class NoServer(contextlib.nullcontext):
        grpc_url = http_url = metrics_url = "nowhere"

        def __init__(self, *_, **__):
            super().__init__(self)

        def watch(self):
            return contextlib.nullcontext()

        def wait(self, stop):
            pass

    monkeypatch.setattr(ensemble.serving, "TritonServer", NoServer)


@pytest.mark.usefixtures("no_server")
def test_a_rule_for_what_no_content_has_is_told_when_a_release_is_served_and_when_it_is_taken(
    pasar, tmp_path, monkeypatch
):
    asked = {}
    monkeypatch.setattr(ensemble.repository, "add_version", lambda *_, **told: asked.update(told) or 2)
    release, settings = synthetic.release(tmp_path, 3).path, tmp_path / "mine.toml"
    command = ["--run", tmp_path / "run", "--release", release]
    settings.write_text('[serve.rules]\nforbidden_categories = { GB = ["Toys"], ID = ["toys"] }\n')
    warning = "warning: rules.forbidden_categories.GB forbids what no content of the release has: 'Toys'"
    code, out, err = pasar("serve", "--config", settings, *command)
    assert code == 0
    assert f"serving {release} at nowhere" in out
    assert err.startswith(warning), err
    assert err.count("\n") == 1
    code, out, err = pasar("reload", *command)
    assert code == 0
    assert "as version 2" in out
    assert err.startswith(warning), err
    assert asked["deadline_s"] == 60
    settings.write_text("[serve]\nstartup_deadline_s = 300\n")
    assert pasar("reload", "--config", settings, *command)[0] == 0
    assert asked["deadline_s"] == 300


@pytest.mark.usefixtures("no_server")
def test_a_release_is_served_from_its_own_folder_and_nothing_is_written_there(pasar, tmp_path, monkeypatch):
    release = synthetic.release(tmp_path, 3).path
    monkeypatch.chdir(release)
    assert pasar("serve", "--release", ".")[0] == 0
    assert (release.parent / "serving" / "repository").is_dir()
    for option in ("run", "state"):
        for place in (".", "inside"):
            code, _, err = pasar("serve", "--release", ".", f"--{option}", place)
            assert code == 1
            assert "lies in the release ., which never changes; choose another" in one_line(err)
            assert f"folder with --{option}" in err
    Release.open(release)  # refuses one with anything else in it


@pytest.mark.slow
def test_serve_takes_another_release_refuses_a_damaged_one_and_stops_cleanly(
    pasar, serving, small_release, other_release, tmp_path
):
    assert served_vectors(serving.url, small_release) == expected_vectors(small_release)

    reload = ["reload", "--run", serving.run, "--url", serving.url, "--release"]
    code, out, err = pasar(*reload, other_release.path)
    assert (code, err) == (0, "")
    assert "as version 2" in out
    assert served_vectors(serving.url, small_release) == expected_vectors(other_release)
    assert expected_vectors(other_release) != expected_vectors(small_release)

    code, out, err = pasar("serve", "--run", serving.run, "--release", small_release.path)
    assert (code, out) == (1, "")
    assert "another process works in" in one_line(err)
    assert "choose another folder with --run" in err
    assert served_vectors(serving.url, small_release) == expected_vectors(other_release)

    damaged = tmp_path / "damaged"
    shutil.copytree(small_release.path, damaged)
    vectors = damaged / "content_vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"\x7f")
    code, out, err = pasar(*reload, damaged)
    assert (code, out) == (1, "")
    assert "content_vectors.npy differs from its SHA-256" in one_line(err)
    assert served_vectors(serving.url, small_release) == expected_vectors(other_release)

    started = group(serving.process.pid)
    assert started
    out, err = serving.stop()
    assert serving.process.returncode == 0
    assert (out, err) == ("stopped\n", "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    with FeedClient(serving.url, timeout_s=2) as client, pytest.raises(RequestError):
        _ = client.tasks


def slates(url, requests):
    with connect(url) as client:
        return client.release, [slate.items for slate in client.feed(requests)]


@pytest.mark.slow
def test_a_running_server_takes_a_release_of_other_knobs_and_chooses_by_them(
    pasar, serving, small_build, small_release, tmp_path
):
    settings, out = tmp_path / "mine.toml", tmp_path / "adjusted"
    knobs = (small_build.folder / "pasar.toml").read_text()
    settings.write_text(
        f"{knobs}seller_cap = 1\nslots = [{{ kind = 'product', most = 0, within = 3 }}]\n"
        "weights_for = { video = { watch = 5.0 } }\n"
    )
    code, said, err = pasar("adjust", "--release", small_release.path, "--out", out, "--config", settings)
    assert (code, err) == (0, "")
    assert "seller_cap: 2 -> 1\n" in said
    assert 'slots: [] -> [{"kind": "product", "most": 0, "within": 3}]\n' in said
    assert "weights_for.video.watch: none -> 5.0\n" in said
    assert "the pre-ranker learned with weights_for.video.watch none: " in said
    made = Release.open(out)

    end = Cascade(small_release).plan.as_of
    users = small_release.array("user_id.npy")[:30].tolist()
    requests = [FeedRequest(user, "ID", end, seed=1) for user in users]
    name, before = slates(serving.url, requests)
    assert name == small_release.name
    told = re.search("`pasar (reload .*) --run RUN`", said)[1].split()
    code, said, err = pasar(*told, "--run", serving.run, "--url", serving.url)
    assert (code, err) == (0, "")
    assert f"({made.name}) as version 2" in said
    name, after = slates(serving.url, requests)
    assert name == made.name

    expected = Cascade(made)(pack(requests))["content_id"].tolist()
    assert [[i.content for i in items] for items in after] == [[c for c in slate if c] for slate in expected]
    code = dict(zip(made.array("text_content_id.npy").tolist(), made.array("seller_code.npy").tolist()))
    kind = dict(zip(made.array("text_content_id.npy").tolist(), made.array("text_kind.npy").tolist()))

    def seen(slates):
        twice = sum(len({code[i.content] for i in items}) < len(items) for items in slates)
        products = sum(kind[i.content] == "product" for items in slates for i in items[:3])
        return twice, products, min(items[0].value for items in slates)

    (twice_before, products_before, _), (twice, products, least) = seen(before), seen(after)
    assert twice_before > 0 == twice
    assert products_before > 0 == products
    assert least > max(i.value for items in before for i in items if kind[i.content] == "video")


@pytest.mark.slow
def test_the_gate_tells_what_a_release_would_lose(pasar, small_release, small_world_dataset, tmp_path):
    asked = ["gate", "--data", small_world_dataset.path, "--against", small_release.path]
    code, said, wrong = pasar(*asked, "--release", small_release.path, "--json", tmp_path / "checks.json")
    assert (code, wrong) == (0, "")
    assert f"{small_release.path} may replace {small_release.path}" in said
    assert "ndcg@10" in said
    checks = json.loads((tmp_path / "checks.json").read_text())["rows"]
    assert {check["figure"] for check in checks} >= {"contents", "places filled", "ndcg@10 by propensity"}
    assert not any(check["refused"] for check in checks)
    with ReleaseWriter(tmp_path / "empty", name="empty") as writer:
        writer.link(small_release, but=["ended_at.npy"])
        ended = small_release.array("ended_at.npy").copy()
        ended[10:] = 0
        writer.array("ended_at.npy", ended)
    code, said, wrong = pasar(*asked, "--release", tmp_path / "empty")
    assert code == 3
    assert "refused" in said
    assert f"{tmp_path / 'empty'} must not replace {small_release.path}: contents in GB: " in one_line(wrong)


def test_adjust_says_in_one_line_what_it_cannot_do(pasar, small_build, small_release, tmp_path):
    settings, out = tmp_path / "mine.toml", tmp_path / "adjusted"
    command = ["adjust", "--release", small_release.path, "--out", out, "--config", settings]
    knobs = (small_build.folder / "pasar.toml").read_text()
    for text, said in (
        (knobs, "has these knobs already"),
        (f"{knobs}slate = 12\n", "slate cannot change without `pasar build`"),
        (f"{knobs}seller_cop = 1\n", "'seller_cop' is no knob; did you mean 'seller_cap'?"),
        (f"{knobs}seller_cap = 0\n", "cascade.seller_cap is 0"),
        ("[build.casade]\nseller_cap = 1\n", "has no [build.cascade]"),
    ):
        settings.write_text(text)
        code, printed, err = pasar(*command)
        assert (code, printed) == (1, "")
        assert said in one_line(err)
        assert not out.exists()
    settings.write_text(f"{knobs}weights_for = {{ NZ = {{ click = 1.0 }} }}\n")
    code, printed, err = pasar(*command)
    assert code == 0
    assert "weights_for.NZ.click: none -> 1.0" in printed
    assert err == "warning: cascade.weights_for.NZ has no effect: contents are served in GB, ID alone\n"


def test_evaluate_says_beside_its_table_what_cannot_be_asked(pasar, tmp_path):
    rows = [f"u{u} i{u % 30} 5.0 2020-01-0{day}" for u in range(60) for day in (1, 2)]
    (tmp_path / "de_5core.txt").write_text("\n".join(["userId itemId rate date", *rows]))
    code, said, err = pasar("evaluate", "xmarket", "--path", tmp_path, "--baselines-only")
    assert code == 0
    assert "| xmarket | DE | ndcg@10 (29 negatives) | popularity |" in said
    assert err.startswith("warning: xmarket (without repeats): no user has a positive row")
    assert err.count("\n") == 1


def test_tune_says_which_of_several_benchmarks_judges(pasar, tmp_path):
    rows = [f"u{u} i{(u + n % 3) % 30} 5.0 2020-01-0{n + 1}" for u in range(60) for n in range(4)]
    (tmp_path / "de_5core.txt").write_text("\n".join(["userId itemId rate date", *rows]))
    command = ["tune", "xmarket", "--path", tmp_path, "--minutes", 0, "--journal", tmp_path / "journal"]
    unique = "xmarket (without repeats)"
    for more, which in (
        ([], f"judged by 'xmarket'; --benchmark chooses another: '{unique}'"),
        (["--benchmark", unique], ""),
    ):
        code, said, _ = pasar(*command, *more)
        assert code == 0
        assert "no trial began; give more --minutes" in said
        assert said.partition("judged by")[2].partition("\n")[0] == which.removeprefix("judged by")


@pytest.mark.slow
def test_serve_ends_with_an_error_when_its_server_has_died(serving):
    (server,) = [pid for pid in group(serving.process.pid) if "tritonserver" in command_of(pid)]
    os.kill(server, signal.SIGKILL)
    out, err = serving.process.communicate()
    assert (serving.process.returncode, out) == (1, "")
    assert err.startswith("error: the server ended by itself with status -9; start it again; its log ")


@pytest.mark.slow
def test_serve_says_which_port_is_taken(pasar, small_release, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = tmp_path / "mine.toml"
        settings.write_text(f"[serve]\ngrpc_port = {port}\nhttp_port = 0\nmetrics_port = 0\n")
        command = ["serve", "--release", small_release.path, "--run", tmp_path / "run", "--config", settings]
        code, out, err = pasar(*command)
    assert (code, out) == (1, "")
    assert f"the grpc port {port} on 127.0.0.1 cannot be used" in one_line(err)


def test_serve_replaces_nothing_but_a_repository(pasar, small_release, tmp_path):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "main.c").write_text("my code")
    code, out, err = pasar("serve", "--release", small_release.path, "--run", tmp_path)
    assert (code, out) == (1, "")
    assert "repository exists and has no */config.pbtxt, so it is not replaced" in one_line(err)
    assert (tmp_path / "repository" / "main.c").read_text() == "my code"


def test_events_of_a_file_are_taken_in_up_to_a_wrong_line_which_is_named(pasar, tmp_path):
    lines = ['{"event": "ended", "content": "l1"}', "", '{"event": "stock", "content": "p1", "stock": 0}']
    file, state = tmp_path / "events.jsonl", tmp_path / "state"
    file.write_text("\n".join(lines))
    code, out, _ = pasar("live", file, "--state", state)
    assert code == 0
    assert out.startswith("2 events in ")
    assert [event["event"] for event in Tail(state / "journal").read()[0]] == ["ended", "stock"]
    file.write_text("\n".join([*lines * 400, '{"event": "stock", "content": "p1"}']))
    code, _, err = pasar("live", file, "--state", state)
    assert code == 1
    said = "line 1201: event 'stock' has no value 'stock'; send event, content, time, stock; "
    assert said + "the 667 events before line 1001 were taken in" in one_line(err)
    assert len(Tail(state / "journal").read()[0]) == 2 + 667


def test_events_are_remembered_in_a_feedback_log_too_where_one_is_given(pasar, tmp_path):
    file, log = tmp_path / "events.jsonl", FeedbackLog(tmp_path / "log")
    file.write_text('{"event": "viewers", "content": "l1", "time": 7200, "viewers": 3}\n')
    code, _, err = pasar("live", file, "--state", tmp_path / "state", "--feedback", log.folder)
    assert code == 0, err
    said = [{"event": "viewers", "content": "l1", "time": 7200, "viewers": 3}]
    assert Tail(tmp_path / "state" / "journal").read()[0] == log.read(2)[0] == said
    code, _, err = pasar("live", file, "--state", log.folder, "--feedback", log.folder)
    assert code == 1
    assert "is the folder of something else; give the feedback log its own" in one_line(err)


def test_feedback_of_a_file_extends_a_data_set(pasar, tmp_path):
    base = write(tmp_path / "base", impressions=[part([7000, 7100])])
    records = [
        shown(1, "u1", "ID", 7200, [{"content": "c0", "position": 0, "propensity": 1}]),
        shown(2, "u9", "GB", 7300, [{"content": "c1", "position": 0, "propensity": 0.5}]),
        shown(3, "u9", "NL", 9999, [{"content": "c1", "position": 0, "propensity": 0.5}]),
        outcome(1, "u1", 7200, "c0", 7300, click=1, order=1),
        outcome(1, "u1", 7200, "c9", 7300, click=1),
        outcome(9, "u0", 7100, "c0", 9000, click=0),
    ]
    file, log = tmp_path / "records.jsonl", tmp_path / "log"
    file.write_text("\n".join(map(json.dumps, records)))
    code, out, err = pasar("feedback", file, "--log", log)
    assert code == 0, err
    assert out.startswith("6 records in ")
    command = ["data", "extend", "--data", base.path, "--log", log, "--until", "1970-01-01T04:00"]
    code, out, err = pasar(*command, "--out", tmp_path / "next", "--wait-hours", 1, "--late-days", 0)
    assert code == 0, err
    told = " ".join((out + err).split())
    for said in (
        "added 2 impressions, 0 moments, 1 users; of other impressions 1 are of markets in which it sells",
        "1 outcomes are left out, of contents that no record says were shown",
        "1 outcomes 'order' are left out",
    ):
        assert said in told
    assert Dataset.open(tmp_path / "next").impressions()["click"].tolist() == [1, 1, 1, 0]
    code, out, _ = pasar(*command, "--out", tmp_path / "late", "--wait-hours", 1)
    assert code == 0
    assert "; of 1 impressions that were there it is known by now what came; of other" in " ".join(
        out.split()
    )
    assert Dataset.open(tmp_path / "late").impressions()["click"].tolist() == [1, 0, 1, 0]
    code, _, err = pasar(*command, "--out", tmp_path / "more", "--late-days", 0)
    assert code == 1
    assert "has nothing to add to tiny: 3 wait for what may still come of them (--wait-hours)" in one_line(
        err
    )
    assert "--until 'noon' is not ISO 8601" in one_line(pasar(*command, "--until", "noon", "--out", log)[2])


def test_people_are_forgotten_and_those_who_were_nowhere_are_named(pasar, tmp_path):
    base, log = write(tmp_path / "base", impressions=[part([7000, 7100])]), FeedbackLog(tmp_path / "log")
    place = {"content": "c0", "position": 0, "propensity": 1}
    log.append([shown(1, user, "ID", 7200, [place]) for user in ("u1", "u2", "u5")])
    (tmp_path / "ids.txt").write_text("\ufeffu1\n\nu5\nu8\n", encoding="utf-8")
    command = ["data", "forget", "--user", "u7", "--users", tmp_path / "ids.txt", "--log", log.folder]
    code, out, err = pasar(*command, "--data", base.path, "--out", tmp_path / "next")
    assert code == 0, err
    told = " ".join(out.split())
    assert f"1 users are not in it; {base.path} has them until you delete it" in told
    assert f"{log.folder} tells nothing of 2 users any more" in told
    assert err == "warning: 2 of 4 users were nowhere: 'u7', 'u8'\n"
    assert Dataset.open(tmp_path / "next").users()["user_id"].tolist() == ["u0", "u2"]
    assert [record["user"] for record in log.read(2)[0]] == ["u2"]
    for wrong, said in (
        (command[:2], "nobody is named; give --user ID, or --users with a file of ids"),
        (command[:4], "give a data set with --data and --out, a feedback log with --log, or both"),
        ([*command[:4], "--data", base.path], "give a data set with --data and --out"),
        ([*command[:4], "--log", tmp_path / "none"], "is no folder; give the one that `pasar serve"),
    ):
        code, _, err = pasar(*wrong)
        assert code == 1
        assert said in one_line(err)


def test_nobody_is_told_to_delete_the_data_set_in_which_people_were_forgotten(pasar, tmp_path):
    base = write(tmp_path / "base", impressions=[part([7000, 7100]), part([7200], user_id="u1")])
    command = ["data", "forget", "--user", "u1", "--data", base.path, "--out", f"{base.path}/", "--overwrite"]
    code, out, err = pasar(*command)
    assert (code, err) == (0, "")
    assert "1 users are not in it" in out
    assert "until you delete it" not in out
    assert Dataset.open(base.path).users()["user_id"].tolist() == ["u0", "u2"]


def test_a_log_tells_what_one_release_was_worth_over_another(pasar, tmp_path):
    records = []
    for number in range(40):
        release, user = ("nightly-2" if number % 2 else "nightly-1"), f"u{number % 37}"
        place = {"content": "c0", "position": 0, "propensity": 0.5 if number == 2 else 1}
        records.append(shown(number, user, "ID", 7200 + number, [place], release))
        if number % 4 == 1:
            records.append(outcome(number, user, 7200 + number, "c0", 9000, click=1, watch_s=8))
    records.append(outcome(99, "u0", 7200, "c0", 9000, click=1))
    file, log = tmp_path / "records.jsonl", tmp_path / "log"
    file.write_text("\n".join(map(json.dumps, records)))
    assert pasar("feedback", file, "--log", log)[0] == 0
    command = ["readout", "--log", log, "--until", "1970-01-02T02:01"]
    code, out, err = pasar(*command, "--json", tmp_path / "figures.json")
    assert code == 0, err
    told = " ".join((out + err).split())
    for said in (
        "Means over requests",
        "nightly-2 over nightly-1, in hours of both",
        "3 of 37 people were served by both nightly-2 and nightly-1: what one did to them may count for",
        "1 outcomes are left out, of contents that no record says were shown",
    ):
        assert said in told
    (click,) = [line for line in out.splitlines() if re.search(r"click .* all .* nightly-2", line)]
    assert click.split("│")[4:7:2] == ["       20 ", "  0.5 "]
    figures = json.loads((tmp_path / "figures.json").read_text())["rows"]
    of = {(f["market"], f["over"], f["figure"]): f["value"] for f in figures if f["release"] == "nightly-2"}
    assert of["ID", "nightly-1", "watch_s"] == of["all", "nightly-1", "watch_s"] == pytest.approx(4)
    code, out, err = pasar(*command, "--json", file / "figures.json")  # no folder
    assert code == 1
    assert "Means over requests" in out  # it is not lost with the file
    code, _, err = pasar(*command, "--wait-hours", 48)
    assert code == 1
    assert "no slate was told of from 1970-01-01 00:00+00:00 until 1969-12-31 02:01" in one_line(err)
    code, _, err = pasar("readout", "--log", tmp_path / "none")
    assert code == 1
    assert "is no folder; give the one that `pasar serve --feedback` has" in one_line(err)


def test_what_feedback_is_worth_is_printed_and_written(pasar, tmp_path, monkeypatch):
    asked = {}

    def judge(world, build, out, *, requests, seed, progress, step):
        asked.update(world=world, seed=seed, out=out, requests=requests)
        first = Row("world", "all", "first release", EXPECTED, 2.0, 1.5, 2.5, 7, seed)
        own = dataclasses.replace(first, system="learned", value=2.5, low=2.1, high=2.9)
        over = dataclasses.replace(own, metric=f"{EXPECTED} over first release", value=0.5, low=0.4, high=0.6)
        return [first, own, over]

    monkeypatch.setattr("evaluation.feedback_loop.feedback_loop", judge)
    (tmp_path / "my.toml").write_text("[world]\nusers = 77\n[build]\nseed = 3\n")
    command = ["loop", "--config", tmp_path / "my.toml", "--out", tmp_path / "loop", "--requests", 9]
    code, out, err = pasar(*command, "--json", tmp_path / "rows.json")
    assert code == 0, err
    assert (asked["world"].users, asked["seed"], asked["requests"]) == (77, 3, 9)
    assert asked["out"] == tmp_path / "loop"
    for said in ("7 users on the test days", "first release", "+0.500 (+0.400 to +0.600)"):
        assert said in " ".join(out.split())
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 3


def test_a_wrong_line_of_feedback_is_named(pasar, tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text('\n{"event": "outcome"}')
    code, _, err = pasar("feedback", file, "--log", tmp_path / "log")
    assert code == 1
    assert "line 2: 'request' of 'outcome' is None; send a whole number" in one_line(err)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[" * 100_000, "JSON nested too deeply"),
        (b'{"event": "ended", "content": "\xff"}', "not JSON ('utf-8' codec can't decode byte 0xff"),
        (r'{"event": "ended", "content": "\ud800"}', r"'content' of 'ended' is '\ud800', half a character"),
        (r'{"event": "ended", "\ud800": 1}', "'ended' has no"),
    ],
)
def test_a_line_that_no_journal_can_hold_is_named(pasar, tmp_path, line, why):
    file = tmp_path / "events.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(b'{"event": "ended", "content": "l1"}\n' + line)
    code, _, err = pasar("live", file, "--state", tmp_path / "state")
    assert code == 1
    assert f"line 2: {why}" in one_line(err)


ENDED = """
import contextlib, sys, time
from pasar import cli

def app(**_):
    with contextlib.ExitStack() as stack:
        stack.callback(print, "cleaned up")
        print("running", flush=True)
        time.sleep(%s)

cli.app = app
cli.main()
"""


@pytest.fixture
def terminal():
    """A hang-up ends processes also where the tests themselves run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("terminal")
def test_a_command_that_is_terminated_or_loses_its_terminal_cleans_up(number):
    command = [sys.executable, "-c", ENDED % 60]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        assert process.stdout.read() == "cleaned up\n"
        assert process.stderr.read().startswith(f"stopped by {number.name}; nothing is left half-written")
    assert process.returncode == 128 + number


def test_an_interrupted_command_says_so_in_one_line(pasar, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("market.dataset.make_dataset", interrupted)
    code, _, err = pasar("data", "make", "--tables", tmp_path, "--out", tmp_path / "out")
    assert code == 130
    assert err.startswith("stopped by SIGINT; ")
    assert err.count("\n") == 1


def test_a_command_whose_terminal_is_gone_has_nowhere_to_say_so():
    program = ENDED % 60
    with open(os.devnull) as unwritable:
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=unwritable, text=True) as process:
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "cleaned up\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_a_command_that_shall_outlive_its_terminal_does():
    command = ["nohup", sys.executable, "-c", ENDED % 1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == "cleaned up\n"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("no_server", "terminal")
def test_serving_ends_when_its_process_is_told_to(pasar, tmp_path, monkeypatch, number):
    def wait(_, stop):
        os.kill(os.getpid(), number)
        assert stop.wait(10)

    monkeypatch.setattr(ensemble.serving.TritonServer, "wait", wait)
    code, out, err = pasar("serve", "--release", synthetic.release(tmp_path, 3).path)
    assert (code, err) == (0, "")
    assert out.endswith("stopped\n")
