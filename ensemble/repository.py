"""The Triton model repository of a release: generated from the steps, changed without a lost request.

Each step is a model folder with its configuration and one folder per version. A version folder holds all that
the version needs, hard links to the release where the file system allows, so a repository can be moved or
mounted alone. The ensemble `feed` chains the steps, each pinned to one version, so a request never mixes two
releases.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tritonclient.grpc as grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from ensemble.network import administrator, is_locked_out, read_key
from ensemble.release import MANIFEST, Release
from ensemble.steps import FEED, OnnxStep, Step, TensorSpec, check_wiring
from ensemble.triton import OPTION, RELEASE
from market.files import written
from market.folders import held, link, unfinished

CONFIG = "config.pbtxt"
TEMPLATES = Path(__file__).resolve().parents[1] / "triton_repo"


class RepositoryError(RuntimeError):
    """A repository that cannot be written or changed; the text says what stays as it was and what to do."""


def write_repository(
    path: str | os.PathLike[str],
    release_path: str | os.PathLike[str],
    steps: Sequence[Step],
    request: Sequence[TensorSpec],
    reply: Sequence[TensorSpec],
    *,
    version: int = 1,
    max_batch: int = 64,
    delay_us: int = 0,
    queue_ms: int = 0,
    instances: int = 1,
    threads: int = 1,
    stages: str = "ensemble.stages:build",
    python_path: str | os.PathLike[str] | None = None,
    beside: Sequence[Step] = (),
    options: Mapping[str, str] | None = None,
) -> None:
    """Write the model repository that serves a release; it appears complete or not at all.

    Args:
        path: the new repository.
        release_path: a release, verified first.
        steps, request, reply: the cascade, and the tensors `feed` takes and gives.
        version: of every step.
        max_batch: rows that one run of a step may hold.
        delay_us: microseconds a request may wait for others to share its run.
        queue_ms: milliseconds a request may wait for a step's process before it is refused, or less where it
            says so; 0 for ever. Requests for a graph that is a step wait as long as need be.
        instances: processes of each Python step; with `queue_ms` at least 2, see `expect_processes`.
        threads: ONNX Runtime's threads in each graph's instance; graphs inside a Python step have one.
        stages: "module:function" called as `function(step name, release, **options)`, returning the stage.
        python_path: folder to import that module from, where it is not installed.
        beside: steps that are served each for itself, outside of `feed`.
        options: given to every Python step.

    Raises:
        WiringError: the steps do not fit together.
        ReleaseError: the release is damaged or lacks a step's graph.
        RepositoryError: `path` exists already.
        ValueError: as `expect_processes`.
    """
    expect_processes(instances, queue_ms)
    check_wiring(steps, request, reply)
    release = _verified(release_path, steps)
    target = Path(path)
    if target.exists():
        raise RepositoryError(f"{target} exists already; add a version to it, or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(target)
    temporary.mkdir()
    try:
        for step in (*steps, *beside):
            config = _step_config(step, max_batch, delay_us)
            if isinstance(step, OnnxStep):
                _set(config, intra_op_thread_count=str(threads), inter_op_thread_count="1")
            else:
                config.instance_group[0].count = instances
                if queue_ms:
                    policy = config.dynamic_batching.default_queue_policy
                    policy.timeout_action = pb.ModelQueuePolicy.REJECT
                    policy.default_timeout_microseconds = 1000 * queue_ms
                    policy.allow_timeout_override = True
                _set(config, stages=stages)
                _set(config, **{f"{OPTION}{name}": said for name, said in (options or {}).items()})
                if python_path is not None:
                    _set(config, python_path=str(Path(python_path).resolve()))
            _write_config(temporary / step.name, config)
        _place(temporary, release, (*steps, *beside), version)
        _write_config(temporary / FEED, _feed_config(steps, request, reply, version, max_batch, release))
        (temporary / FEED / "1").mkdir()
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def expect_processes(instances: int, queue_ms: int) -> None:
    """Refuse one process whose queue has a limit.

    Under a limit Triton's batcher asks whether a process is free when a request comes. One that came while
    the only process ran waits for the next to come, or half a second. With two processes that happens to two
    in 200,000, where nobody else asks; see docs/performance.md.

    Raises:
        ValueError: says what to change.
    """
    if queue_ms and instances == 1:
        raise ValueError(
            "one process cannot have a limit of queue_ms: Triton would let requests wait half a second while "
            "it is free; take instances of 2 or more, or queue_ms = 0"
        )


def add_version(
    path: str | os.PathLike[str],
    release_path: str | os.PathLike[str],
    steps: Sequence[Step],
    request: Sequence[TensorSpec],
    reply: Sequence[TensorSpec],
    *,
    url: str,
    deadline_s: float = 60.0,
    drain_s: float = 1.0,
    beside: Sequence[Step] = (),
) -> int:
    """Move a running server to another release without losing a request.

    The new version of every step is loaded beside the old one; then `feed` is pinned to the new one; then,
    after `drain_s` for requests under way, the old one is dropped. A failure before `feed` has moved undoes
    all of it.

    Args:
        path: the repository that the server at `url` serves, in explicit model-control mode.
        release_path: the new release, verified before anything is touched.
        steps, request, reply: the cascade, with the borders that the repository was written with.
        url: the server's gRPC address, "host:port".
        deadline_s: seconds that loading one step may take.
        drain_s: seconds for which requests under way may still use the old version.
        beside: as the repository was written with.

    Returns:
        The new version.

    Raises:
        WiringError: the steps do not fit together.
        ReleaseError: the release is damaged, naming the file; nothing was touched.
        RepositoryError: the steps or tasks differ from the repository's, the server refused a step or serves
            another repository, or another change is under way; the old release keeps serving. Or the new one
            serves, but the server did not let go of the old one; the text says which.
    """
    check_wiring(steps, request, reply)
    release = _verified(release_path, steps)
    target = Path(path)
    with (
        _only_writer(target),
        administrator(url, read_key(target)) as client,
    ):
        old_feed = read_config(target, FEED)
        _check_same(target, old_feed, steps, request, reply, release)
        every = (*steps, *beside)
        old = max(step.model_version for step in old_feed.ensemble_scheduling.step)
        version = max(old, *(v for step in every for v in versions(target, step.name))) + 1
        not_served = f"the server at {url} does not serve {target}; check --url"
        try:
            # The server must not have it yet, or its having it later would not show that it serves `target`.
            while any(client.is_model_ready(s.name, str(version), client_timeout=deadline_s) for s in every):
                version += 1
            feed = _feed_config(steps, request, reply, version, old_feed.max_batch_size, release)
            _place(target, release, every, version)
            for step in every:
                client.load_model(step.name, client_timeout=deadline_s)
                if not client.is_model_ready(step.name, str(version), client_timeout=deadline_s):
                    raise RepositoryError(not_served)
            _write_config(target / FEED, feed)
            client.load_model(FEED, client_timeout=deadline_s)
        except BaseException as error:  # also where somebody lost patience
            if read_config(target, FEED) != old_feed:  # a full disk would not take it
                _write_config(target / FEED, old_feed)
            with contextlib.suppress(InferenceServerException):  # a server that is gone has nothing to drop
                _drop(client, target, every, [version], deadline_s)
            if not isinstance(error, InferenceServerException | OSError | RepositoryError):
                raise
            why = not_served if is_locked_out(error) else error
            raise RepositoryError(
                f"release '{release.name}' was not taken, version {old} keeps serving: {why}"
            ) from error
        time.sleep(drain_s)
        stale = {v for step in every for v in versions(target, step.name)} - {version}
        try:
            _drop(client, target, every, sorted(stale), deadline_s)
        except InferenceServerException as error:
            raise RepositoryError(
                f"release '{release.name}' serves as version {version}, but the server still holds an older "
                f"one ({error}); the next change drops it"
            ) from error
    return version


@contextlib.contextmanager
def _only_writer(target: Path) -> Iterator[None]:
    if not target.is_dir():
        raise RepositoryError(f"{target} is no repository; write it first")
    busy = RepositoryError(f"another change of {target} is under way; try again when it is done")
    with held(target, busy):
        yield


def read_config(path: str | os.PathLike[str], model: str) -> pb.ModelConfig:
    """The configuration of one model of a repository."""
    file = Path(path) / model / CONFIG
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise RepositoryError(f"{file} cannot be read ({error}); write the repository again") from error


def read_option(path: str | os.PathLike[str], name: str, usual: str) -> str:
    """What every Python step of a repository was given under a name; `usual` where it was given nothing."""
    for model in models(path):
        parameters = read_config(path, model).parameters
        if f"{OPTION}{name}" in parameters:
            return parameters[f"{OPTION}{name}"].string_value
    return usual


def models(path: str | os.PathLike[str]) -> list[str]:
    """Names of the models of a repository."""
    return sorted(file.parent.name for file in Path(path).glob(f"*/{CONFIG}"))


def versions(path: str | os.PathLike[str], model: str) -> list[int]:
    """Versions of one model that lie in a repository, oldest first."""
    return sorted(int(p.name) for p in (Path(path) / model).iterdir() if p.name.isdigit())


def _verified(release_path: str | os.PathLike[str], steps: Sequence[Step]) -> Release:
    release = Release.open(release_path)
    for step in steps:
        if isinstance(step, OnnxStep):
            release.onnx_path(step.file)
    return release


def _step_config(step: Step, max_batch: int, delay_us: int) -> pb.ModelConfig:
    onnx = isinstance(step, OnnxStep)
    config = pb.ModelConfig(
        name=step.name, backend="onnxruntime" if onnx else "python", max_batch_size=max_batch
    )
    config.version_policy.all.SetInParent()
    config.dynamic_batching.max_queue_delay_microseconds = delay_us
    kind = pb.ModelInstanceGroup.KIND_AUTO if onnx else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=1, kind=kind)
    _add_tensors(config, step.inputs, step.outputs)
    if not onnx:
        # A stage pads what differs in length; a graph is given requests of one length at a time.
        for entry, spec in zip(config.input, step.inputs):
            entry.allow_ragged_batch = spec.varies
            if spec.pad != TensorSpec(spec.name, spec.dtype, spec.shape).pad:
                _set(config, **{f"pad.{spec.name}": json.dumps(spec.pad)})
    return config


def _feed_config(
    steps: Sequence[Step],
    request: Sequence[TensorSpec],
    reply: Sequence[TensorSpec],
    version: int,
    max_batch: int,
    release: Release,
) -> pb.ModelConfig:
    config = pb.ModelConfig(name=FEED, platform="ensemble", max_batch_size=max_batch)
    # What a client must know of the release to read its replies.
    _set(config, **release.info.get("feed", {}), release=release.name)
    _add_tensors(config, request, reply)
    read = {spec.name for spec in reply} | {spec.name for step in steps for spec in step.inputs}
    for step in steps:
        entry = config.ensemble_scheduling.step.add(model_name=step.name, model_version=version)
        entry.input_map.update({spec.name: spec.name for spec in step.inputs})
        entry.output_map.update({spec.name: spec.name for spec in step.outputs if spec.name in read})
    return config


def _add_tensors(config: pb.ModelConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    for entries, specs in ((config.input, inputs), (config.output, outputs)):
        for spec in specs:
            kind = "TYPE_" + spec.triton_type.replace("BYTES", "STRING")
            entry = entries.add(name=spec.name, data_type=pb.DataType.Value(kind), dims=spec.shape or (1,))
            if not spec.shape and config.platform != "ensemble":
                entry.reshape.SetInParent()


def _set(config: pb.ModelConfig, **values: str) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value


def _write_config(folder: Path, config: pb.ModelConfig) -> None:
    with written(folder / CONFIG) as place:
        place.write_text(text_format.MessageToString(config), encoding="utf-8")


def _place(target: Path, release: Release, steps: Sequence[Step], version: int) -> None:
    """Put one version of every step in the repository, each folder complete or absent."""
    # Where the release is on another disk, a file is copied once and linked from there.
    first: dict[str, Path] = {}
    for step in steps:
        folder = target / step.name
        temporary = folder / f".{version}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if isinstance(step, OnnxStep):
            files = {step.file: "model.onnx"}
        else:
            shutil.copyfile(TEMPLATES / "stage" / "model.py", temporary / "model.py")
            (temporary / RELEASE).mkdir()
            files = {file: f"{RELEASE}/{file}" for file in (*release.files, MANIFEST)}
        for file, place in files.items():
            link(first.get(file, release.path / file), temporary / place)
            first[file] = folder / str(version) / place
        temporary.rename(folder / str(version))


def _check_same(
    target: Path,
    feed: pb.ModelConfig,
    steps: Sequence[Step],
    request: Sequence[TensorSpec],
    reply: Sequence[TensorSpec],
    release: Release,
) -> None:
    """Refuse a cascade of other borders: one configuration serves all versions of a step."""
    same = [(_feed_config(steps, request, reply, 0, 0, release), feed)]
    same += [(_step_config(step, 0, 0), read_config(target, step.name)) for step in steps]
    for new, old in same:
        changed = list(new.input) != list(old.input) or list(new.output) != list(old.output)
        # A client that asked for the tasks once names probabilities by them from then on.
        changed |= new.parameters.get("tasks") != old.parameters.get("tasks")
        order = [step.model_name for step in old.ensemble_scheduling.step]
        if changed or [step.model_name for step in new.ensemble_scheduling.step] != order:
            raise RepositoryError(
                f"'{new.name}' has other tensors, steps or tasks than in {target}; the old release keeps "
                "serving; write a new repository and start a server on it"
            )


def _drop(
    client: grpc.InferenceServerClient,
    target: Path,
    steps: Sequence[Step],
    stale: Sequence[int],
    deadline_s: float,
) -> None:
    for step in steps:
        for version in stale:
            whole, going = (target / step.name / name for name in (str(version), f".{version}"))
            shutil.rmtree(going, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                whole.rename(going)  # half a version would keep a step that died from being loaded again
            shutil.rmtree(going, ignore_errors=True)
    for model in (*(step.name for step in steps), FEED):
        client.load_model(model, client_timeout=deadline_s)
