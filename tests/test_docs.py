"""The documents' Python samples: what they import is there, and they run, but for those of quality."""

import ast
import importlib
import re
import shutil

import numpy as np
import pytest

from evaluation.readout import readout
from feedback.extend import extend
from feedback.log import FeedbackLog
from tests.conftest import REPOSITORY, SMALL_SETTINGS, serve
from tests.ensemble import tls
from tests.test_style import of_the_project

DOCUMENTS = sorted(file for file in of_the_project(REPOSITORY) if file.suffix == ".md")
SMALL_WORLD = """
[world]
users = 400
contents = 300
sellers = 30
impressions = 8000
days = 6
markets = ["ID", "GB"]
images = true
"""


def samples(path):
    """The Python samples of a document, in its order."""
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(code):
    """What a sample defines, by name."""
    names = {"__name__": "__main__"}
    exec(compile(code, "sample", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("document", "code"),
    [
        pytest.param(path, code, id=f"{path.relative_to(REPOSITORY)}, {turn}")
        for path in DOCUMENTS
        for turn, code in enumerate(samples(path))
    ],
)
def test_a_sample_imports_what_is_there(document, code):
    for line in ast.walk(ast.parse(code)):
        if isinstance(line, ast.ImportFrom):
            module = importlib.import_module(line.module)
            for one in line.names:
                assert hasattr(module, one.name), f"{document.name}: {line.module} has no {one.name}"
        elif isinstance(line, ast.Import):
            for one in line.names:
                importlib.import_module(one.name)


def anchors(path):
    """What links may name within a document: its headings as pages of repositories make them."""
    lines = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", lines, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for place, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        target = (path.parent / place) if place else path
        if ":" not in place:
            assert target.exists(), f"{place} is not there"
            assert not anchor or anchor in anchors(target), f"{place} has no heading #{anchor}"


@pytest.fixture
def workplace(small_build, small_world_dataset, tmp_path, monkeypatch):
    """A folder in which `pasar demo`, and the commands before a sample, have made a small world's build."""
    for data, build in (("runs/demo/data", "runs/demo"), ("runs/million", "runs/million-build")):
        shutil.copytree(small_build.folder / "build", tmp_path / build)
        shutil.copytree(small_world_dataset.path, tmp_path / data)
    for name in ("pasar.toml", "million.toml"):
        (tmp_path / name).write_text(SMALL_WORLD + SMALL_SETTINGS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_sample_of_the_world_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = samples(REPOSITORY / "docs" / "world.md")
    run(code + "assert outcomes.click.shape == truth.value.shape == (64, 10)\n")


def test_the_sample_of_the_compiler_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = samples(REPOSITORY / "docs" / "compiler.md")
    run(code + "assert [array.round(2).tolist() for array in session.run(None, row)] == [[3], [1.0]]\n")
    assert "['user/feature', 'price/feature']" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1], ids=["calibration", "play"])
def test_the_samples_of_evaluation_run_and_train_nothing_anew(workplace, monkeypatch, capsys, turn):
    every = samples(REPOSITORY / "docs" / "evaluation.md")
    assert len(every) == 3

    def trains(*_, **__):
        raise AssertionError("a model is trained again")

    monkeypatch.setattr("models.training.TrainingLoop.run", trains)
    run(every[turn])
    assert "| data set | market | metric | system |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_samples_of_serving_run(feed_server, small_release, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    every = samples(REPOSITORY / "docs" / "serving.md")
    asks, serves, _told, privately = every
    assert "127.0.0.1:8001" in asks
    run(asks.replace("127.0.0.1:8001", feed_server.grpc_url))
    run(serves)
    assert (tmp_path / "repository" / "scoring" / "2").is_dir()
    assert not (tmp_path / "repository" / "scoring" / "1").exists()
    authority = tls.Authority(tmp_path)
    authority.issue("client")
    with tls.proxy(feed_server.grpc_url, authority, known_clients=True) as url:
        assert "localhost:8443" in privately
        capsys.readouterr()
        run(privately.replace("localhost:8443", url))
    assert capsys.readouterr().out == f"{small_release.name}\n"


@pytest.mark.slow
def test_slates_become_rows_of_the_next_data_set(small_release, small_world_dataset, tmp_path):
    told, split = (samples(REPOSITORY / "docs" / name)[2] for name in ("serving.md", "evaluation.md"))
    user, log = small_world_dataset.users().iloc[0], tmp_path / "log"
    with serve(small_release, tmp_path / "serving", one_process=True, feedback=log) as server:
        port = server.grpc_url.rsplit(":", 1)[1]
        here = {"127.0.0.1:8001": server.grpc_url, "127.0.0.1:8101": f"localhost:{port}"}
        here |= {'"u000120"': f'"{user["user_id"]}"', '"ID"': f'"{user["market"]}"'}
        for old, new in here.items():
            assert old in told + split
            told, split = told.replace(old, new), split.replace(old, new)
        made = run(told)
        request, items = made["request"], made["slate"].items
        extended, _ = extend(small_world_dataset, log, tmp_path / "next", wait_s=0, until=request.time + 1)
        run(split)
    (seconds,) = [
        figure
        for figure in readout(FeedbackLog(log), since=request.time, until=2**31).figures
        if (figure.market, figure.figure) == (user["market"], "watch_s")
    ]
    assert (seconds.release, seconds.requests, seconds.people) == (small_release.name, 2, 1)
    assert seconds.value == pytest.approx((9.5 + 0.8 + 9.5) / 2)
    rows = extended.impressions().tail(3)
    assert rows["content_id"].tolist() == [item.content for item in items[:3]]
    assert rows[["position", "click", "order"]].to_numpy().tolist() == [[0, 1, 1], [1, 0, 0], [2, 0, 0]]
    assert rows["request_id"].nunique() == 1
    assert rows["request_id"].iloc[0] > small_world_dataset.impressions(["request_id"]).max().item()
    np.testing.assert_array_equal(rows["watch_s"], np.float32([9.5, 0.8, 0]))
    assert rows["value"].tolist() == [12, 0, 0]
    assert rows["propensity"].tolist() == [np.float32(item.propensity) for item in items[:3]]
    assert set(rows["market"]) == {user["market"]}
