"""Fixtures shared by every test: the real data folder, where there is one, and one small world."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from ensemble.build import BuildConfig, Built
    from ensemble.release import Release
    from ensemble.server import TritonServer
    from market.dataset import Dataset
    from models.batches import TrainingSet
    from supply.rules import Rules
    from workflows.examples import Examples
    from workflows.features import Features

REPOSITORY = Path(__file__).resolve().parents[1]
# A machine may halt for a second or a minute in any test, which is no fault of what is tested. Examples are
# the same each time; `pytest --hypothesis-profile=search` draws others.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", PATIENT, derandomize=True)
settings.register_profile("search", PATIENT)
settings.load_profile("same")
CPU_TENSORFLOW = any(of.metadata["Name"] == "tensorflow-cpu" for of in distributions())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take long come first, so that tests side by side end at about the same time."""
    long = {item.path for item in items for name in ("slow", "real_data") if item.get_closest_marker(name)}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` runs where there is a CUDA device, before its fixtures are made."""
    if not item.get_closest_marker("gpu"):
        return
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no CUDA device on this machine")
    if CPU_TENSORFLOW:
        pytest.skip("TensorFlow is the CPU's in this environment; environment.yml makes one for a GPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        pytest.skip("CUDA_VISIBLE_DEVICES hides every CUDA device")


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_a_power_cut() -> Iterator[None]:
    """What tests write need not reach the disk: a release waits for each of its files to get there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of public data sets: $PASAR_DATA, else ../shared/data beside the checkout."""
    root = Path(os.environ.get("PASAR_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no public data sets at {root}; set PASAR_DATA to their folder")
    return root


def public_data(root: Path, name: str) -> Path:
    """The folder of one of the public data sets."""
    if not (root / name).is_dir():
        pytest.skip(f"no data set {name} in {root}")
    return root / name


@pytest.fixture(scope="session")
def small_world_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six days of a simulated world with two markets, its contents with images: 8,000 impressions in slates
    of ten, split by time."""
    from market.world import World, WorldConfig

    size = {"users": 400, "contents": 300, "sellers": 30, "impressions": 8000, "days": 6}
    config = WorldConfig(**size, markets=("ID", "GB"), images=True)
    return World(config).write(tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="session")
def small_examples(small_world_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Queries and pairs of the small world, with histories of ten events."""
    from workflows.examples import build_examples

    return build_examples(
        small_world_dataset, tmp_path_factory.mktemp("examples"), history_length=10, seen_length=40
    )


@pytest.fixture(scope="session")
def small_features(small_examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Features:
    """The small world's encoded queries and contents."""
    from workflows.features import FeatureConfig, fit_features

    folder = tmp_path_factory.mktemp("features") / "features"
    return fit_features(small_examples, folder, FeatureConfig(history_length=10, user_min_count=2))


@pytest.fixture(scope="session")
def small_training_set(small_examples: Examples, small_features: Features) -> TrainingSet:
    """What the small world's models train on; popularity looks three days back."""
    from models.batches import make_training_set
    from models.item_graph import ItemGraphConfig, fit_item_graph

    graph = fit_item_graph(small_examples, ItemGraphConfig())
    return make_training_set(small_examples, small_features, graph, window_s=3 * 86_400)


SMALL_SETTINGS = """
[build]
seed = 3
[build.features]
history_length = 10
user_min_count = 2
[build.two_tower]
dim = 8
embedding_dim = 8
hidden = [16]
batch_size = 256
epochs = 1
[build.ranker]
embedding_dim = 8
bottom = [8]
top = [16, 8]
epochs = 1
min_outcomes = 20
vectors = true
attention = true
experts = 2
gates = true
esmm = true
[build.cascade]
retrieved = 120
candidates = 60
quotas = { two_tower = 20, item_graph = 20, trending = 15 }
pool = 30
"""


@dataclass(frozen=True)
class SmallBuild:
    """The small world's build: its folder, its configuration, and what it made."""

    folder: Path
    config: BuildConfig
    built: Built


@pytest.fixture(scope="session")
def small_build(small_world_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> SmallBuild:
    """The small world built into a release, one epoch for each model."""
    from ensemble.build import build_release
    from pasar.settings import load

    folder = tmp_path_factory.mktemp("small")
    (folder / "pasar.toml").write_text(SMALL_SETTINGS)
    config = load(folder / "pasar.toml").build
    return SmallBuild(folder, config, build_release(small_world_dataset, folder / "build", config))


@pytest.fixture(scope="session")
def plain_config(small_build: SmallBuild) -> BuildConfig:
    """The small build's configuration for tests of what is around the ranker: of its optional parts it has
    the gates alone, which know the market."""
    from dataclasses import replace

    config = small_build.config
    ranker = replace(config.ranker, vectors=False, attention=False, experts=0, esmm=False)
    return replace(config, ranker=ranker)


@pytest.fixture(scope="session")
def seasonal_build(small_build: SmallBuild, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The models of the small build in a release that counts by seasons of a day to each side."""
    from dataclasses import replace

    from ensemble.build import Built
    from ensemble.export import write_release
    from models.calibration import Calibration
    from models.ranker import train_ranker
    from models.seasons import Seasons
    from models.two_tower import train_two_tower

    config, work = small_build.config, small_build.folder / "build" / "work"
    data = small_build.built.data
    # Training that has ended gives the models back as they were.
    two_tower, _ = train_two_tower(data, config.two_tower, work / "two_tower", config.seed)
    ranker, tasks, _ = train_ranker(data, config.ranker, work / "ranker", config.seed)
    data = replace(data, seasons=Seasons.of(data.examples, 86_400))
    release = write_release(
        tmp_path_factory.mktemp("seasonal") / "release",
        name="seasonal",
        data=data,
        two_tower=two_tower,
        ranker=ranker,
        tasks=tasks,
        calibration=Calibration.identity(len(data.examples.markets), 6, len(tasks)),
        config=config.cascade,
    )
    return Built(release, data)


@pytest.fixture(scope="session")
def small_release(small_build: SmallBuild) -> Release:
    """The release of the small world."""
    return small_build.built.release


@dataclass(frozen=True)
class CommandBuild:
    """What `pasar build` said and made."""

    said: subprocess.CompletedProcess[str]
    replaced: Release
    release: Release


@pytest.fixture(scope="session")
def command_build(
    small_build: SmallBuild, small_world_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> CommandBuild:
    """`pasar build` of the small world with another seed, into a folder where the small release stands."""
    from ensemble.release import Release

    folder = tmp_path_factory.mktemp("other")
    (folder / "pasar.toml").write_text(SMALL_SETTINGS.replace("seed = 3", "seed = 4"))
    shutil.copytree(small_build.folder / "build" / "release", folder / "build" / "release")
    replaced = Release.open(folder / "build" / "release")
    command = [sys.executable, "-c", "from pasar.cli import main; main()", "build"]
    command += ["--data", str(small_world_dataset.path), "--out", "build"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return CommandBuild(said, replaced, Release.open(folder / "build" / "release"))


@pytest.fixture(scope="session")
def other_release(command_build: CommandBuild) -> Release:
    """A release of the small world with other weights than `small_release`."""
    return command_build.release


@contextmanager
def serve(
    release: Release,
    folder: Path,
    *,
    one_process: bool,
    state: Path | None = None,
    feedback: Path | None = None,
    rules: Rules | None = None,
    watched: bool = True,
) -> Iterator[TritonServer]:
    """A Triton server of a release, on free ports; `watched` as `pasar serve` watches it."""
    from ensemble.serving import ServeConfig, serve_release
    from supply.rules import Rules

    config = ServeConfig(
        grpc_port=0, http_port=0, metrics_port=0, one_process=one_process, rules=rules or Rules()
    )
    with (
        serve_release(release.path, folder, config, state, feedback) as server,
        server.watch(every_s=2) if watched else nullcontext(),
    ):
        yield server


@pytest.fixture(scope="session")
def feed_server(small_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The Triton server of the small release, all steps in one process."""
    with serve(small_release, tmp_path_factory.mktemp("serving"), one_process=True) as server:
        yield server


@pytest.fixture(scope="session")
def split_feed_server(
    small_release: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """The Triton server of the small release, each step a model of its own."""
    with serve(small_release, tmp_path_factory.mktemp("split"), one_process=False) as server:
        yield server
