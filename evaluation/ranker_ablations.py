"""What each part of the ranker is worth: its validation AUC with parts added, under several seeds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.runs import ALL, Row
from models.batches import TrainingSet
from models.ranker import RankerConfig, train_ranker
from models.training import Progress, quiet
from workflows.examples import VALID

from merlin.schema import Tags  # isort: skip

PLAIN: Mapping[str, Any] = {"vectors": False, "attention": False, "experts": 0, "esmm": False, "gates": False}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "content vectors": {"vectors": True},
    "attention": {"attention": True},
    "4 experts": {"experts": 4},
    "ESMM": {"esmm": True},
    "gates": {"gates": True},
    "all of them": {"vectors": True, "attention": True, "experts": 4, "esmm": True, "gates": True},
}
"""What each variant adds to `PLAIN`."""


def ablate_ranker(
    data: TrainingSet, config: RankerConfig, seeds: Sequence[int], progress: Progress = quiet
) -> Iterator[Row]:
    """Rows of the validation metrics of each variant, one a metric, as soon as it is trained.

    A row is the mean over the seeds, each counted once, two standard errors to each side; `users` are those
    of the validation part, and `seed` is the first. "… over plain" are differences from the first variant,
    seed by seed: under one seed all variants see the same batches. Content vectors are no variant where
    contents have none.
    """
    base: dict[str, np.ndarray] = {}
    seeds = list(dict.fromkeys(seeds))  # the same again would say that seeds do not differ
    pairs, queries = data.examples.pairs, data.examples.queries
    people = len(np.unique(queries.user[pairs.query[pairs.rows(VALID)]]))
    blind = not len(data.features.content.schema.select_by_tag(Tags.EMBEDDING))
    for name, parts in VARIANTS.items():
        if blind and parts == {"vectors": True}:
            continue
        found: dict[str, list[float]] = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="pasar-ranker-") as folder:
                knobs = replace(config, **{**PLAIN, **parts})
                _, _, states = train_ranker(data, knobs, Path(folder), seed, progress)
            for state in states:
                for metric, value in state.history[state.best_epoch - 1].items():
                    found.setdefault(metric, []).append(value)
        measured = {metric: np.array(values) for metric, values in found.items()}
        base = base or measured
        measured |= {f"{metric} over plain": values - base[metric] for metric, values in measured.items()}
        for metric, values in measured.items():
            mean = float(values.mean())
            half = 2 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.nan
            yield Row(data.examples.name, ALL, name, metric, mean, mean - half, mean + half, people, seeds[0])
