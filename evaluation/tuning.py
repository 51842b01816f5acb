"""Looks for better knobs on a data set's validation part, within a budget of time, with Optuna.

Each trial builds a release and judges the cascade by the exams that the protocol makes of the validation
part; the test rows are nowhere. Trials go into a journal, so a search that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ensemble.build import BuildConfig
from evaluation.cascade import FullCascade, Released
from evaluation.tasks import Benchmark, Labelled
from workflows.kept import MADE_BY, code_of, sources

#: Knobs of a build that are searched, by section and name, and where. The ends lie about a factor of three
#: around the defaults, and beyond what `data_sets.toml` sets.
SPACE: Mapping[str, FloatDistribution | IntDistribution] = {
    "item_graph.regularisation": FloatDistribution(10, 500, log=True),
    "item_graph.vectors": FloatDistribution(1, 100, log=True),
    "item_graph.neighbours": IntDistribution(50, 1200, log=True),
    "two_tower.temperature": FloatDistribution(0.04, 0.3, log=True),
    "two_tower.learning_rate": FloatDistribution(3e-4, 5e-3, log=True),
    "two_tower.user_dropout": FloatDistribution(0, 1),
    "two_tower.logq": FloatDistribution(0, 1),
    "ranker.learning_rate": FloatDistribution(3e-4, 3e-3, log=True),
    "ranker.id_dropout": FloatDistribution(0, 0.8),
    "ranker.negatives": IntDistribution(2, 16, log=True),
    "ranker.popular_negatives": FloatDistribution(0, 0.8),
}

_BEGINS = b'{"op_code":'
"""What a journal begins with, or as much of it as a kill left."""


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        knobs: by section and name, those that were searched.
        value: of the validation part, see `judge`; NaN where there was a fault.
        seconds: that it took.
        fault: why there is no value, such as a training that diverged; "" where there is one.
    """

    knobs: dict[str, float]
    value: float
    seconds: float
    fault: str = ""


def tune(
    benchmark: Benchmark,
    build: BuildConfig,
    journal: Path,
    *,
    minutes: float,
    sections: Sequence[str] = (),
    seed: int = 0,
    told: Callable[[Trial], None] = lambda trial: None,
    training: Callable[..., None] | None = None,
) -> list[Trial]:
    """Trials of this search and of those before it of the same benchmark, `build` and code, the best first.

    Knobs with which a release cannot be built or judged, for its training diverges, are told and tried no
    more; where those of `build` itself cannot, nothing can be searched around them.

    The first trial is `build` itself; the others are what a tree-structured Parzen estimator (Bergstra et
    al., NeurIPS 2011) asks for. A knob that is 0 in `build` stays so where `SPACE` begins above: it switches
    something off. What is drawn hangs on the seed and on how many trials are done, so a search that was
    stopped or killed goes on as if it had not been.

    Args:
        benchmark: of the validation part.
        journal: file of the trials; it is made where it is missing.
        minutes: no trial begins after them.
        sections: search the knobs of these sections alone; all where empty.
        seed: of the search and of every build.
        told: of each trial when it is done, also of one with a fault.

    Raises:
        ValueError: a section that has no knob in `SPACE`, or `journal` is another file; or as
            `build_release` does for `build`.
    """
    space: dict[str, BaseDistribution] = {
        name: where
        for name, where in SPACE.items()
        if (not sections or _section(name) in sections) and (value_of(build, name) or where.low <= 0)
    }
    known = {_section(name) for name in SPACE}
    if unknown := [section for section in sections if section not in known]:
        raise ValueError(f"no knob of {unknown[0]!r} is searched; there are {', '.join(sorted(known))}")
    journal.parent.mkdir(parents=True, exist_ok=True)
    _end_with_a_whole_line(journal)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{benchmark.task.name} {_fingerprint(benchmark, build)}",
        storage=JournalStorage(JournalFileBackend(str(journal))),
        direction="maximize",
        load_if_exists=True,
    )
    if not study.get_trials(states=[TrialState.COMPLETE, TrialState.WAITING]):
        study.enqueue_trial({name: value_of(build, name) for name in space})

    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        # Counts the failed ones, too: else the same knobs would be drawn again, and fail again.
        done = len(study.get_trials(states=[TrialState.COMPLETE, TrialState.FAIL]))
        study.sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence([seed, done]).generate_state(1)[0]), n_startup_trials=6
        )
        trial = study.ask(space)
        cascade = FullCascade(Released(with_knobs(build, trial.params), training))
        try:
            cascade.fit(benchmark.task, seed=seed)
            value = judge(benchmark, cascade)
        except ValueError as error:
            if not done:
                raise
            told(_told(study.tell(trial, state=TrialState.FAIL), fault=str(error)))
            continue
        told(_told(study.tell(trial, value)))
    found = [_told(trial) for trial in study.get_trials(states=[TrialState.COMPLETE])]
    return sorted(found, key=lambda trial: -trial.value)


def judge(benchmark: Benchmark, cascade: FullCascade) -> float:
    """The mean over the exams of each one's first metric; of errors, what is least is highest."""
    found = []
    for exam in benchmark.exams:
        measure = next(iter(exam.measure(cascade)))
        falls = measure.metric.split()[0] == "mae"
        found.append(-measure.interval.mean if falls else measure.interval.mean)
    return float(np.mean(found))


def value_of(build: BuildConfig, name: str) -> Any:
    """The value of a knob such as "ranker.negatives"."""
    section, knob = name.split(".")
    return getattr(getattr(build, section), knob)


def with_knobs(build: BuildConfig, knobs: Mapping[str, Any]) -> BuildConfig:
    """The configuration with other values of some knobs, each named as "ranker.negatives"."""
    for name, value in knobs.items():
        section, knob = name.split(".")
        build = replace(build, **{section: replace(getattr(build, section), **{knob: value})})
    return build


def _end_with_a_whole_line(journal: Path) -> None:
    """Cut off what a kill or a full disk left of a last line: the next would be read as a part of it.

    Raises:
        ValueError: the file is none of Optuna's; it is left as it is.
    """
    if journal.exists():
        lines = journal.read_bytes()
        if not _BEGINS.startswith(lines[: len(_BEGINS)]):
            raise ValueError(f"{journal} is no journal of trials; choose another --journal")
        if (whole := lines.rfind(b"\n") + 1) < len(lines):
            os.truncate(journal, whole)


def _fingerprint(benchmark: Benchmark, build: BuildConfig) -> str:
    """Changes with any row that a system sees of the benchmark, with what its exams ask, with any knob of the
    build and with any line of the code that builds and judges."""
    said = [asdict(build), code_of(sources(*MADE_BY, "evaluation"))]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    tables = benchmark.task.tables
    for table in (tables.users, tables.contents, tables.sellers, tables.impressions):
        if table is not None:
            digest.update(table.to_parquet(index=False))
    for exam in benchmark.exams:
        digest.update(json.dumps([exam.market, exam.metrics]).encode())
        asked: tuple[np.ndarray, ...] = (exam.users,)
        if isinstance(exam, Labelled):
            asked += exam.candidates, exam.labels
        else:
            asked += exam.pool, exam.truth.indptr, exam.truth.indices
        for array in asked:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _section(name: str) -> str:
    return name.split(".")[0]


def _told(trial: FrozenTrial, fault: str = "") -> Trial:
    assert trial.duration is not None
    value = float("nan") if trial.value is None else trial.value
    return Trial(dict(trial.params), value, trial.duration.total_seconds(), fault)
