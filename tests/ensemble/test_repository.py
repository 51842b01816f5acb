import errno
import os
import shutil

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from ensemble import repository
from ensemble.release import ReleaseError
from ensemble.repository import RepositoryError, add_version, read_config, write_repository
from ensemble.steps import OnnxStep, StageStep, TensorSpec, WiringError
from market.folders import tidy
from tests.ensemble import toy
from tests.ensemble.test_network import proxy

CASCADE = (toy.STEPS, toy.REQUEST, toy.REPLY)
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return toy.write_release(tmp_path_factory.mktemp("release") / "one")


@pytest.fixture
def repo(release, tmp_path):
    write_repository(
        tmp_path / "repo", release, *CASCADE, max_batch=8, delay_us=70, queue_ms=9, instances=2, threads=3
    )
    return tmp_path / "repo"


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_step_is_a_model_and_feed_chains_them(repo):
    assert repository.models(repo) == ["feed", "pick", "query", "user_state"]
    feed = read_config(repo, "feed")
    chain = [(step.model_name, step.model_version) for step in feed.ensemble_scheduling.step]
    assert chain == [("user_state", 1), ("query", 1), ("pick", 1)]
    assert [t.name for t in feed.input] == ["user_id", "diversity", "exclude"]
    assert [t.name for t in feed.output] == ["item_id", "score", "stage_release", "graph_release"]


def test_the_limits_asked_for_are_in_the_configurations(repo):
    for name in ("user_state", "query", "pick"):
        config = read_config(repo, name)
        assert config.max_batch_size == 8
        assert config.dynamic_batching.max_queue_delay_microseconds == 70
        policy = config.dynamic_batching.default_queue_policy
        assert policy == (
            pb.ModelQueuePolicy()
            if name == "query"  # has one process, which may have no limit
            else pb.ModelQueuePolicy(
                timeout_action="REJECT", default_timeout_microseconds=9000, allow_timeout_override=True
            )
        )
    assert read_config(repo, "pick").instance_group[0].count == 2
    assert read_config(repo, "query").parameters["intra_op_thread_count"].string_value == "3"


def test_one_process_whose_queue_has_a_limit_is_refused(release, tmp_path):
    with pytest.raises(ValueError, match="take instances of 2 or more, or queue_ms = 0"):
        write_repository(tmp_path / "repo", release, *CASCADE, queue_ms=1)
    assert not (tmp_path / "repo").exists()


def test_only_tensors_that_are_read_leave_a_step(release, tmp_path):
    spare = TensorSpec("spare", np.float32)
    first = toy.STEPS[0]
    steps = (StageStep(first.name, first.inputs, (*first.outputs, spare)), *toy.STEPS[1:])
    write_repository(tmp_path / "repo", release, steps, toy.REQUEST, toy.REPLY)
    step = read_config(tmp_path / "repo", "feed").ensemble_scheduling.step[0]
    assert dict(step.output_map) == {"state": "state"}
    assert [t.name for t in read_config(tmp_path / "repo", "user_state").output] == ["state", "spare"]


def test_a_repository_holds_all_of_its_release_without_a_second_copy(repo, release):
    stored = repo / "pick" / "1" / "release"
    assert files(stored) == files(release)
    assert os.path.samefile(stored / "items.npy", release / "items.npy")
    assert os.path.samefile(repo / "query" / "1" / "model.onnx", release / "query.onnx")


def test_a_release_on_another_disk_is_copied_once(release, tmp_path, monkeypatch):
    link = os.link

    def other_disk(source, target):
        if release in source.parents:
            raise OSError("cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", other_disk)
    write_repository(tmp_path / "repo", release, *CASCADE)
    one, two = (tmp_path / "repo" / step / "1" / "release" / "items.npy" for step in ("user_state", "pick"))
    assert not one.samefile(release / "items.npy")
    assert one.samefile(two)


def test_a_pad_of_one_s_own_is_kept(release, tmp_path):
    exclude = TensorSpec("exclude", str, (-1,), pad="none")
    last = toy.STEPS[2]
    steps = (*toy.STEPS[:2], StageStep(last.name, (last.inputs[0], exclude), last.outputs))
    write_repository(tmp_path / "repo", release, steps, toy.REQUEST, toy.REPLY)
    assert read_config(tmp_path / "repo", "pick").parameters["pad.exclude"].string_value == '"none"'


def test_a_damaged_release_writes_nothing(release, tmp_path):
    broken = shutil.copytree(release, tmp_path / "broken")
    (broken / "items.npy").write_bytes(b"")
    with pytest.raises(ReleaseError, match=r"items\.npy"):
        write_repository(tmp_path / "repo", broken, *CASCADE)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_what_a_killed_writer_left_goes_when_somebody_tidies_up(release, tmp_path, monkeypatch):
    def place(*_):
        os._exit(9)

    monkeypatch.setattr(repository, "_place", place)
    if (writer := os.fork()) == 0:
        try:
            write_repository(tmp_path / "repo", release, *CASCADE)
        finally:
            os._exit(1)  # this copy of the process runs no other test
    assert os.waitpid(writer, 0)[1] == 9 << 8
    assert len(list(tmp_path.iterdir())) == 1
    tidy(tmp_path / "repo")
    assert list(tmp_path.iterdir()) == []


def test_a_release_without_a_step_s_graph_is_refused(release, tmp_path):
    query = toy.STEPS[1]
    steps = (toy.STEPS[0], OnnxStep("query", "other.onnx", query.inputs, query.outputs), toy.STEPS[2])
    with pytest.raises(ReleaseError, match=r"no 'other\.onnx'; its \.onnx files: query\.onnx"):
        write_repository(tmp_path / "repo", release, steps, toy.REQUEST, toy.REPLY)


def test_steps_that_do_not_fit_are_refused(release, tmp_path):
    with pytest.raises(WiringError, match="step 'query' reads 'state'"):
        write_repository(tmp_path / "repo", release, toy.STEPS[1:], toy.REQUEST, toy.REPLY)


def test_a_step_cannot_take_the_ensemble_s_name(release, tmp_path):
    steps = (StageStep("feed", toy.REQUEST, (toy.state,)), *toy.STEPS[1:])
    with pytest.raises(WiringError, match="'feed' needs a name of its own"):
        write_repository(tmp_path / "repo", release, steps, toy.REQUEST, toy.REPLY)


def test_a_repository_is_never_overwritten(repo, release):
    before = files(repo)
    with pytest.raises(RepositoryError, match="exists already; add a version"):
        write_repository(repo, release, *CASCADE)
    assert files(repo) == before


def test_a_release_that_no_server_took_is_taken_back(repo, release):
    before = files(repo)
    with pytest.raises(RepositoryError, match="was not taken, version 1 keeps serving"):
        add_version(repo, release, *CASCADE, url=NOWHERE, deadline_s=2)
    after = files(repo)
    after.pop(next(p for p in after if p.name == ".lock"))
    assert after == before
    assert not list(repo.glob("*/2"))


def test_a_proxy_is_not_asked_for_a_server_of_this_host(repo, release, monkeypatch):
    with proxy(monkeypatch) as asked, pytest.raises(RepositoryError, match="was not taken"):
        add_version(repo, release, *CASCADE, url=NOWHERE, deadline_s=2)
    assert not asked


@pytest.mark.parametrize("refused", ["query", "feed"])
def test_what_a_refused_load_had_written_is_taken_back(repo, release, monkeypatch, refused):
    """At `query` one step is loaded already; at `feed` all are, and its configuration is a new one."""
    before, server = files(repo), Refusing(repo, refused)
    monkeypatch.setattr(repository.grpc, "InferenceServerClient", lambda *_, **__: server)
    with pytest.raises(RepositoryError, match="was not taken, version 1 keeps serving: no memory"):
        add_version(repo, release, *CASCADE, url=NOWHERE)
    steps = ["pick", "query", "user_state"]
    assert server.placed == [repo / step / "2" for step in steps], "all steps lay there when it was refused"
    assert server.pinned == {2 if refused == "feed" else 1}
    after = files(repo)
    after.pop(next(p for p in after if p.name == ".lock"))
    assert after == before
    assert not [*repo.glob("*/2"), *repo.glob("*/.2")]
    assert server.loaded[-4:] == ["user_state", "query", "pick", "feed"], "the server is told of the old ones"


def test_a_release_that_the_disk_has_no_room_for_is_taken_back(repo, release, monkeypatch):
    before, placed = files(repo), []

    def copy(source, target):
        placed.append(target)
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(folder, config):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repository, "link", copy)
    monkeypatch.setattr(repository, "_write_config", write)
    monkeypatch.setattr(repository.grpc, "InferenceServerClient", lambda *_, **__: Refusing(repo, "none"))
    with pytest.raises(RepositoryError, match=r"was not taken, version 1 keeps serving: .* No space left"):
        add_version(repo, release, *CASCADE, url=NOWHERE)
    after = files(repo)
    after.pop(next(p for p in after if p.name == ".lock"))
    assert placed
    assert after == before


@pytest.mark.parametrize("refused", ["query", "feed"])
def test_a_change_that_is_interrupted_is_taken_back(repo, release, monkeypatch, refused):
    before, server = files(repo), Refusing(repo, refused, KeyboardInterrupt())
    monkeypatch.setattr(repository.grpc, "InferenceServerClient", lambda *_, **__: server)
    with pytest.raises(KeyboardInterrupt):
        add_version(repo, release, *CASCADE, url=NOWHERE)
    after = files(repo)
    after.pop(next(p for p in after if p.name == ".lock"))
    assert after == before
    assert server.loaded[-4:] == ["user_state", "query", "pick", "feed"], "the server is told of the old ones"


def test_a_server_that_does_not_let_go_of_the_old_version_is_told_of(repo, release, monkeypatch):
    server = Refusing(repo, "none")
    load = server.load_model

    def load_model(name, client_timeout):
        if server.loaded[-1:] == ["feed"]:  # it has moved
            raise InferenceServerException("too late")
        load(name, client_timeout)

    monkeypatch.setattr(server, "load_model", load_model)
    monkeypatch.setattr(repository.grpc, "InferenceServerClient", lambda *_, **__: server)
    said = r"'release-1' serves as version 2, but the server still holds an older one \(too late\); the next"
    with pytest.raises(RepositoryError, match=said):
        add_version(repo, release, *CASCADE, url=NOWHERE, drain_s=0)
    assert {step.model_version for step in read_config(repo, "feed").ensemble_scheduling.step} == {2}


def test_a_version_is_dropped_at_once_however_long_it_takes_to_delete(repo, release, monkeypatch):
    """What is half there does not load, and a step that died would not either."""
    monkeypatch.setattr(repository.grpc, "InferenceServerClient", lambda *_, **__: Refusing(repo, "none"))
    remove, seen = shutil.rmtree, []

    def rmtree(path, **options):
        seen.append(path.name)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    add_version(repo, release, *CASCADE, url=NOWHERE, drain_s=0)
    assert not [*repo.glob("*/1/release"), *repo.glob("*/.1")]
    assert ".1" in seen
    assert "1" not in seen


class Refusing:
    """The client of a server that loads what lies in the repository, but refuses version 2 of one model."""

    def __init__(self, repo, refused, error=None):
        self.repo, self.refused = repo, refused
        self.error = error or InferenceServerException("no memory")
        self.loaded: list[str] = []
        self.ready: set[tuple[str, str]] = set()

    def is_model_ready(self, name, version, client_timeout):
        return (name, version) in self.ready

    def load_model(self, name, client_timeout):
        if name == self.refused and not hasattr(self, "placed"):
            self.placed = sorted(self.repo.glob("*/2"))
            chain = read_config(self.repo, "feed").ensemble_scheduling.step
            self.pinned = {step.model_version for step in chain}
            raise self.error
        self.loaded.append(name)
        self.ready |= {(name, str(version)) for version in repository.versions(self.repo, name)}

    def close(self):
        pass


def test_other_borders_need_a_new_repository(repo, release):
    wider = tuple(
        StageStep(s.name, s.inputs, (*s.outputs, TensorSpec(f"{s.name}_more", str))) for s in toy.STEPS[:1]
    )
    with pytest.raises(RepositoryError, match=r"'user_state' has other tensors, .* write a new repository"):
        add_version(repo, release, (*wider, *toy.STEPS[1:]), toy.REQUEST, toy.REPLY, url=NOWHERE)
    with pytest.raises(RepositoryError, match="'feed' has other tensors"):
        add_version(repo, release, toy.STEPS, toy.REQUEST, toy.REPLY[:-1], url=NOWHERE)


def test_other_tasks_need_a_new_repository(tmp_path):
    first = toy.write_release(tmp_path / "first", tasks="click,order")
    second = toy.write_release(tmp_path / "second", tasks="order,click")
    write_repository(tmp_path / "repo", first, *CASCADE)
    with pytest.raises(RepositoryError, match=r"'feed' has other .* tasks .* write a new repository"):
        add_version(tmp_path / "repo", second, *CASCADE, url=NOWHERE)


def test_two_changes_at_once_are_refused(repo, release):
    with (
        repository._only_writer(repo),
        pytest.raises(RepositoryError, match=r"another change of .* is under way"),
    ):
        add_version(repo, release, *CASCADE, url=NOWHERE)


def test_a_folder_that_is_no_repository_is_refused(release, tmp_path):
    with pytest.raises(RepositoryError, match="is no repository"):
        add_version(tmp_path / "none", release, *CASCADE, url=NOWHERE)
    (tmp_path / "none").mkdir()
    with pytest.raises(RepositoryError, match=r"config\.pbtxt cannot be read"):
        add_version(tmp_path / "none", release, *CASCADE, url=NOWHERE)


def test_a_step_beside_the_ensemble_is_a_model_of_its_own_and_options_reach_every_python_step(
    release, tmp_path
):
    beside = StageStep("notes", (TensorSpec("note", str),), (TensorSpec("kept", np.int64),))
    options = {"state": "/some/where"}
    write_repository(tmp_path / "repo", release, *CASCADE, beside=[beside], options=options)
    assert repository.models(tmp_path / "repo") == ["feed", "notes", "pick", "query", "user_state"]
    chain = read_config(tmp_path / "repo", "feed").ensemble_scheduling.step
    assert "notes" not in [step.model_name for step in chain]
    assert repository.versions(tmp_path / "repo", "notes") == [1]
    for name, given in (("notes", "/some/where"), ("pick", "/some/where"), ("query", "")):
        parameters = read_config(tmp_path / "repo", name).parameters
        assert parameters["option.state"].string_value == given
