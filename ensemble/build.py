"""The whole way from a data set to a release: examples, features, item graph, two-tower, ranker, calibration,
export, stacking, pre-ranker."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from ensemble.appraisal import with_worth
from ensemble.blending import kinds_sold
from ensemble.distil import with_preranker, with_stacking
from ensemble.export import item_graphs, shown_where, write_release
from ensemble.plan import CascadeConfig
from ensemble.release import MANIFEST, Release
from market.dataset import Dataset
from market.folders import FolderInUse, expect_own, held, only_user, replace, tidy, unfinished
from market.kinds import KINDS
from market.knobs import LARGEST_SEED, expect
from market.statistics import DAY_S
from models.batches import TrainingSet, make_training_set
from models.calibration import CalibrationConfig, calibrate
from models.conversion import conversions
from models.item_graph import ItemGraphConfig, fit_item_graph, fit_market_graphs
from models.low_rank import fit_low_rank
from models.members import member_folders
from models.preranker import PreRankerConfig
from models.ranker import RankerConfig, expect_starts, learned_tasks, train_ranker
from models.stacking import StackingConfig
from models.starts import FILE, Starts, after, from_nothing
from models.training import Progress, quiet
from models.two_tower import TwoTowerConfig, train_two_tower
from models.unseen import known_markets
from workflows.examples import TEST, VALID, Examples, SplitConfig, build_examples
from workflows.features import SPACES, FeatureConfig, fit_features
from workflows.kept import ANEW, code_of, read_kept, sources
from workflows.vectors import VectorSpace, read_spaces

_MARK = "fingerprint"
_EARLIER, _WHENCE = "earlier", "folder"
"""In a work folder: a copy of what the build goes on from, and in that, which folder it is of."""
_KEPT_BY = ("market", "workflows", "models")
"""Packages whose code makes, with this file's, what is kept in a work folder; they import no others."""
_ELSEWHERE = "choose another folder to build in"

READ_LAST = ("calibration", "stacking", "preranker", "cascade")
"""Sections that nothing which a build keeps in its work folder was made with: they are read again each time,
once the models are trained."""


@dataclass(frozen=True)
class BuildConfig:
    """Knobs of a build; see each part.

    Attributes:
        seed: of everything drawn while building.
        popularity_window_h: trailing window of popularity where a data set is cut by time (hours).
        live_window_s: an impression of a live room is labelled with what its user did there within this time
            from it on, for logs that tell a stay as many impressions; 0 takes each for itself (seconds).
    """

    seed: int = 7
    popularity_window_h: float = 72.0
    live_window_s: int = 0
    split: SplitConfig = field(default_factory=SplitConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    item_graph: ItemGraphConfig = field(default_factory=ItemGraphConfig)
    two_tower: TwoTowerConfig = field(default_factory=TwoTowerConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    stacking: StackingConfig = field(default_factory=StackingConfig)
    preranker: PreRankerConfig = field(default_factory=PreRankerConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)

    def __post_init__(self) -> None:
        expect(self, "build", "seed", least=0, most=LARGEST_SEED)
        expect(self, "build", "popularity_window_h", above=0)
        expect(self, "build", "live_window_s", least=0)


@dataclass(frozen=True)
class Built:
    """A release and the data it was trained on."""

    release: Release
    data: TrainingSet


def build_release(
    dataset: Dataset,
    folder: Path,
    config: BuildConfig,
    *,
    before: Path | None = None,
    see: Callable[[TrainingSet], TrainingSet] = lambda data: data,
    progress: Progress = quiet,
    step: Callable[[str], None] = lambda name: None,
) -> Built:
    """Build a data set into the release `folder`/release.

    A build that was killed goes on with the epoch it was in when it is started again with the same data set,
    configuration and code; with others it starts anew, or behind the training where only sections of
    `READ_LAST` differ. A release that stands there is replaced at the end, once the new one is complete.

    Args:
        before: folder of an earlier build, of a log that this one goes on: the ranker starts from what it was
            there and is trained on what is new, see `models.starts`. It is read as the build begins, and no
            longer needed then.
        see: what models may see of the training set; a comparison hides things from them.
        progress: told of every batch of training.
        step: told the name of each step as it begins.

    Raises:
        FolderInUse: another build works in `folder` or `before`, or what it would replace is no build's.
        ValueError: `folder` lies in the data set, which may be replaced as a whole; or the log teaches
            nothing, or nothing new, or nothing of it can be held out, or under `config.cascade.weights`
            nothing is of worth in a market; or `before` is no build that this one can go on from. Nothing is
            trained then.
    """
    if dataset.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(f"{folder} lies in the data set {dataset.path}, which never changes; {_ELSEWHERE}")
    if before is not None:
        if before.resolve() == folder.resolve():
            raise ValueError(f"{folder} cannot be built from itself; {_ELSEWHERE}")
        if dataset.split != "time":
            raise ValueError(
                f"{dataset.name} is not cut by time, so there are no rows since {before}; build without it"
            )
    with only_user(folder, _ELSEWHERE):
        return _build_release(dataset, folder, config, before, see, progress, step)


def _build_release(
    dataset: Dataset,
    folder: Path,
    config: BuildConfig,
    before: Path | None,
    see: Callable[[TrainingSet], TrainingSet],
    progress: Progress,
    step: Callable[[str], None],
) -> Built:
    work, target = folder / "work", folder / "release"
    for place, sign in ((work, _MARK), (target, MANIFEST)):
        tidy(place)
        expect_own(place, sign, _ELSEWHERE)
    made_of = fingerprint(dataset, config)
    starts: Starts = from_nothing
    spaces = None
    if before is None:
        _take_up(work, made_of)
    else:
        with _earlier(before, work / _EARLIER) as earlier:
            said = f"{made_of} on from {(earlier / _MARK).read_text()}"
            made_of = hashlib.sha256(said.encode()).hexdigest()
            members = config.ranker.members
            _take_up(work, made_of, lambda fresh: _copy(earlier, before, members, fresh / _EARLIER))
        starts, spaces = after(work / _EARLIER), read_spaces(work / _EARLIER / "features" / SPACES)
    data = see(build_training_set(dataset, work, config, spaces=spaces, step=step))
    examples = data.examples
    kinds = pd.Index(KINDS).get_indexer(examples.contents["kind"])
    learned = learned_tasks(examples, config.ranker.min_outcomes)
    if before is not None:
        expect_starts(data, config.ranker, work / "ranker", starts)
    shown = kinds_sold(shown_where(examples, known_markets(examples)), kinds)
    config.cascade.expect_worth(learned, examples.markets, shown)
    step("two-tower")
    two_tower, retrieval = train_two_tower(data, config.two_tower, work / "two_tower", config.seed, progress)
    step("ranker")
    ranker, tasks, ranking = train_ranker(data, config.ranker, work / "ranker", config.seed, progress, starts)
    step("calibration")
    calibration = calibrate(ranker, data, tasks, config.ranker, config.calibration)
    step("release")
    drafts = work / "drafts"
    shutil.rmtree(drafts, ignore_errors=True)
    drafted, asked, fresh = (drafts / name for name in ("draft", "asked", "release"))
    info = {
        "data_set": dataset.name,
        "seed": config.seed,
        "went_on": before is not None,
        "two_tower": [{"best_epoch": one.best_epoch, "validation": one.history} for one in retrieval],
        "ranker": [{"best_epoch": one.best_epoch, "validation": one.history} for one in ranking],
    }
    draft = write_release(
        drafted,
        name=dataset.name,
        data=data,
        two_tower=two_tower,
        ranker=ranker,
        tasks=tasks,
        calibration=calibration,
        config=config.cascade,
        info=info,
    )
    if examples.feedback == "positives":
        step("stacking")
        draft = with_stacking(draft, asked, data, two_tower, config.stacking, config.seed)
    else:
        step("worth")
        draft = with_worth(draft, asked, data, two_tower, config.seed)
    served = None
    if examples.drawn:
        # They were only drawn to know when to stop, so what is served knows all of them.
        step("item graph of all rows")
        served = item_graphs(
            fit_item_graph(data.examples, config.item_graph, VALID).graph,
            fit_market_graphs(data.examples, config.item_graph, VALID),
            fit_low_rank(data.examples, config.item_graph, VALID),
        ) | {"conversion.npy": conversions(data.examples, VALID)}
    step("pre-ranker")
    with_preranker(draft, fresh, data, two_tower, config.preranker, config.seed, served)
    replace(fresh, target)
    shutil.rmtree(drafts, ignore_errors=True)
    return Built(Release.open(target), data)


@contextmanager
def _earlier(before: Path, copy: Path) -> Iterator[Path]:
    """The work folder of the build in `before`, in which nobody works meanwhile; where it has gone, the copy
    that `_copy` may have made of it.

    Raises:
        FolderInUse: another build works there.
        ValueError: there is neither.
    """
    work, whence = before / "work", copy / _WHENCE
    if (work / _MARK).exists():
        with held(before, FolderInUse(f"another process works in {before}; build when it has ended")):
            yield work
    elif whence.exists() and whence.read_text() == str(before.resolve()):
        yield copy
    else:
        raise ValueError(
            f"{before} is no folder of a build; give what `pasar build --out` was given, or {ANEW}"
        )


def _copy(earlier: Path, before: Path, members: int, copy: Path) -> None:
    """Copy what `members` rankers go on from, of the build in `before`, whose work folder is `earlier`.

    Raises:
        ValueError: something is missing or damaged.
    """
    rankers = [f"{place.name}/{FILE}" for place in member_folders(Path("ranker"), members)]
    for ranker in rankers:
        if not (earlier / ranker).exists():
            raise ValueError(
                f"{earlier / ranker} is missing: ranker.members changed to {members}, or that build has not "
                f"ended; set it to what it was, let that build end, or {ANEW}"
            )
    for name in (_MARK, f"features/{SPACES}", *rankers):
        if name != _MARK:
            read_kept(earlier / name)
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(earlier / name, copy / name)
    (copy / _WHENCE).write_text(str(before.resolve()))


def _take_up(work: Path, made_of: str, begin: Callable[[Path], None] = Path.mkdir) -> None:
    """Leave in the folder `work` what a build that was made of the same left there, else its beginning alone.

    Args:
        made_of: see `fingerprint`.
        begin: makes a folder with what is there from the beginning. Where it fails, `work` is as it was.
    """
    mark = work / _MARK
    if mark.exists() and mark.read_text() == made_of:
        return
    fresh = unfinished(work)
    try:
        begin(fresh)
        (fresh / _MARK).write_text(made_of)
        replace(fresh, work)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def build_training_set(
    dataset: Dataset,
    work: Path,
    config: BuildConfig,
    *,
    spaces: Mapping[str, VectorSpace] | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> TrainingSet:
    """What the models of a build are trained on; its arrays are files under `work`.

    Args:
        spaces: see `workflows.features.fit_features`.
        step: told the name of each step as it begins.
    """
    step("examples")
    examples = build_examples(
        dataset,
        work,
        history_length=config.features.history_length,
        seen_length=config.features.seen_length,
        live_window_s=config.live_window_s,
        split=config.split,
        seed=config.seed,
    )
    _expect_held_out(examples, config.split)
    features = fit_features(
        examples,
        work / "features",
        config.features,
        progress=lambda name: step(f"features, {name}"),
        spaces=spaces,
    )
    if not any(name.startswith("hist_") for name in features.query.arrays):
        raise ValueError(
            "no training query has a history of known contents, so there is nothing to retrieve by; train on "
            "a longer log"
        )
    step("item graph")
    graph = fit_item_graph(examples, config.item_graph)
    by_market = fit_market_graphs(examples, config.item_graph)
    low_rank = fit_low_rank(examples, config.item_graph)
    window_s, season_s = int(config.popularity_window_h * 3600), int(config.features.season_days * DAY_S)
    return make_training_set(examples, features, graph, window_s, season_s, by_market, low_rank)


def _expect_held_out(examples: Examples, split: SplitConfig) -> None:
    """Raise ValueError for a log that is cut by time and of which nothing is left to choose or judge by."""
    if examples.split != "time":
        return
    valid = VALID, "to stop training by", f"valid_fraction, which is {split.valid_fraction}"
    test = TEST, "for the report", f"test_fraction, which is {split.test_fraction}"
    for part, purpose, knob in (valid, test):
        rows = examples.queries.rows(part)
        if rows.start == rows.stop:
            raise ValueError(
                f"no row of {examples.name} is left {purpose}: rows of one time stay together, and too many "
                f"are of the last times; raise split.{knob}, or give `time` in the impressions to the second"
            )


def fingerprint(dataset: Dataset, config: BuildConfig | None = None) -> str:
    """Changes with any byte of the data set and, where there is a configuration, any knob but `READ_LAST` and
    any line of the code that makes what a build keeps in its work folder."""
    made_with = None
    if config is not None:
        knobs = {name: knob for name, knob in asdict(config).items() if name not in READ_LAST}
        made_with = [knobs, code_of([*sources(*_KEPT_BY), Path(__file__)])]
    said = json.dumps([asdict(dataset.description), made_with], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for file in sorted(dataset.path.rglob("*.parquet")):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
