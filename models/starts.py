"""What a ranker's training may start from: the weights that an earlier build's ended with, by keys of ids.

Categories are numbered anew by each build, so embeddings are kept with the raw keys that they stand for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from market.statistics import PAIR_FEATURES
from workflows.examples import TRAIN, Examples
from workflows.features import Features

from .batches import FORGOTTEN, UNSEEN, TrainingSet
from .blocks import table_of
from .gates import Gates

FILE = "learned.npz"
"""In the folder of a training."""
KEYS, ROWS, OF = "keys of ", "rows", " in "
SLOTS = ("m", "v")
_ANEW = "build without an earlier one, which trains from the beginning"


@dataclass(frozen=True)
class Start:
    """What one training goes on from.

    Attributes:
        file: that an earlier training left with `keep`.
    """

    file: Path

    def new(self, examples: Examples) -> np.ndarray:
        """Which of the training rows come after all that the earlier training knew, bool[P].

        Raises:
            ValueError: there is nothing to start from, or no row is new.
        """
        with self._learned() as learned:
            until = int(learned["until"])
        found = examples.queries.time[examples.pairs.query[examples.pairs.rows(TRAIN)]] >= until
        if not found.any():
            raise ValueError(
                f"{examples.name} has no training row after those of {self.file}, so there is nothing "
                f"new to learn; take a longer log, or {_ANEW}"
            )
        return found

    def rows(self, examples: Examples, replay: float, seed: int) -> np.ndarray:
        """The training rows that are `new`, and some of the others: ascending, int64[P] of `Examples.pairs`.

        Args:
            replay: how many of the others for each of the first.
        """
        new = self.new(examples)
        old = np.random.default_rng(seed).permutation(np.flatnonzero(~new))[: round(replay * new.sum())]
        return examples.pairs.rows(TRAIN).start + np.sort(np.concatenate([np.flatnonzero(new), old]))

    def give(self, model: tf.keras.Model, data: TrainingSet, tasks: tuple[str, ...]) -> None:
        """Give a model, whose variables stand, the weights to start from.

        An id that the earlier training did not know starts as the unseen ones of its column ended, where
        training showed ids as unseen, else as the mean of those it knew; its gate as it was made.

        Raises:
            ValueError: the weights are of another model.
        """
        first = UNSEEN + 1
        state, write = _state(model)
        with self._learned() as learned:
            if str(learned["made_of"]) != _made_of(data.features, tasks, state):
                raise ValueError(
                    f"{self.file} is of a ranker that reads other columns, learns other tasks or has other "
                    f"layers: the data set or [build.ranker] changed; {_ANEW}"
                )
            for name, own in state.items():
                old, domain = learned[name], name.partition(OF)[2]
                if old.shape[1:] != own.shape[1:] or (not domain and old.shape != own.shape):
                    raise ValueError(
                        f"{self.file} is of a ranker of another shape, {old.shape} where this one has "
                        f"{own.shape}: knobs of [build.ranker] changed; {_ANEW}"
                    )
                if not domain:
                    own[...] = old
                    continue
                place = pd.Index(learned[KEYS + domain]).get_indexer(data.features.keys[domain])
                own[:first] = old[:first]
                own[first:][place >= 0] = old[first:][place[place >= 0]]
                if name.startswith(ROWS) and len(old) > first:
                    new = old[UNSEEN] if domain in FORGOTTEN else old[first:].mean(axis=0)
                    own[first:][place < 0] = new
        write()

    def _learned(self) -> np.lib.npyio.NpzFile:
        try:
            return np.load(self.file, allow_pickle=False)
        except FileNotFoundError:
            raise ValueError(f"{self.file} is missing, so there is nothing to start from; {_ANEW}") from None


Starts = Callable[[Path], Start | None]
"""What the training in a folder goes on from."""


def from_nothing(folder: Path) -> Start | None:
    """A `Starts` of trainings that begin with weights that are drawn."""
    return None


def after(work: Path) -> Starts:
    """Trainings go on from those in folders of the same names in an earlier build's work folder."""
    return lambda folder: Start(work / folder.name / FILE)


def keep(model: tf.keras.Model, data: TrainingSet, tasks: tuple[str, ...], folder: Path) -> None:
    """Write what a training ended with into its folder, for a later one to start from.

    Args:
        tasks: of the ranker, in the order of its output.
    """
    queries = data.examples.queries
    ended = int(queries.time[queries.rows(TRAIN)].max(initial=0)) + 1
    keys = {KEYS + domain: array for domain, array in data.features.keys.items()}
    place, (state, _) = folder / f".{FILE}", _state(model)
    with place.open("wb") as opened:
        made_of = np.array(_made_of(data.features, tasks, state))
        np.savez(opened, made_of=made_of, until=np.array(ended), **keys, **state)
    os.replace(place, folder / FILE)


def _made_of(features: Features, tasks: tuple[str, ...], state: Collection[str]) -> str:
    """All that must be equal in two rankers for the weights of one to mean the same in the other: what they
    read, but not how many ids there are, what they tell, and the names of their weights."""
    every = features.query.schema + features.content.schema
    columns = [(c.name, sorted(map(str, c.tags)), str(c.shape)) for c in every]
    return json.dumps([columns, PAIR_FEATURES, tasks, sorted(state)])


def _state(model: tf.keras.Model) -> tuple[dict[str, np.ndarray], Callable[[], None]]:
    """Copies of the weights of a model and of its optimiser's, by name, and what makes them theirs again.

    A row that comes without its second moment would be thrown far by its first gradient, so moments go with
    the weights. Arrays with a row for each id end with their domain, `OF` before it; those that begin with
    `ROWS` are embeddings.
    """
    table, optimizer = table_of(model), model.optimizer
    domains = {
        kernel.ref(): domain
        for layer in model.submodules
        if isinstance(layer, Gates)
        for domain, kernel in layer.kernels.items()
    }
    variables = {"steps": (optimizer.iterations, None)}
    for place, variable in enumerate(model.trainable_variables):
        kind = ROWS if variable is table.embeddings else f"weight {place}"
        slots = {f"{slot} of {kind}": optimizer.get_slot(variable, slot) for slot in SLOTS}
        variables |= {name: (made, variable) for name, made in {kind: variable, **slots}.items()}
    arrays = {name: np.array(variable) for name, (variable, _) in variables.items()}
    state: dict[str, np.ndarray] = {}
    for name, (_, of) in variables.items():
        if of is table.embeddings:
            ends = [*list(table.first.values())[1:], len(arrays[name])]
            for (domain, first), end in zip(table.first.items(), ends):
                state[name + OF + domain] = arrays[name][first:end]
        else:
            domain = None if of is None else domains.get(of.ref())
            state[name + OF + domain if domain else name] = arrays[name]

    def write() -> None:
        for name, (variable, _) in variables.items():
            variable.assign(arrays[name])

    return state, write
