"""What a ranker's training may start from: the weights that an earlier build's ended with, by keys of ids.

Categories are numbered anew by each build, so embeddings are kept with the raw keys that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from workflows.examples import TRAIN, Examples
from workflows.kept import ANEW, read_kept, write_kept

from .batches import UNSEEN, TrainingSet
from .blocks import table_of
from .gates import Gates

FILE = "learned.npz"
"""In the folder of a training."""
KEYS, ROWS, OF = "keys of ", "rows", " in "
SLOTS = ("m", "v")


@dataclass(frozen=True)
class Start:
    """What one training goes on from.

    Attributes:
        file: that an earlier training left with `keep`.
    """

    file: Path

    def expect(self, examples: Examples, made_of: Mapping[str, Any]) -> None:
        """Raise what `rows` and `give` would.

        Args:
            made_of: as `keep` was given.
        """
        self._learned_by(made_of)
        self.new(examples)

    def new(self, examples: Examples) -> np.ndarray:
        """Which of the training rows the earlier training did not know, bool[P]: those that come after all it
        knew, and those of markets of which it had no row.

        Raises:
            ValueError: there is nothing to start from, or no row is new.
        """
        learned = self._learned()
        query, queries = examples.pairs.query[examples.pairs.rows(TRAIN)], examples.queries
        joined = np.isin(examples.markets, learned["markets"], invert=True)
        found = (queries.time[query] >= learned["until"]) | joined[queries.market[query]]
        if not found.any():
            raise ValueError(
                f"{examples.name} has no training row after those of the earlier build, so there is nothing "
                f"new to learn; take a longer log, or {ANEW}"
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

    def give(self, model: tf.keras.Model, data: TrainingSet, made_of: Mapping[str, Any]) -> None:
        """Give a model, whose variables stand, the weights to start from.

        An id that the earlier training did not know starts as the unseen ones of its column ended, where that
        training showed ids as unseen, else as the mean of those it knew; its gate as it was made.

        Args:
            made_of: as `keep` was given.

        Raises:
            ValueError: the weights are of another model.
        """
        first = UNSEEN + 1
        learned = self._learned_by(made_of)
        state, write = _state(model)
        for name, own in state.items():
            old, domain = learned.get(name), name.partition(OF)[2]
            if old is None or old.shape[1:] != own.shape[1:] or (not domain and old.shape != own.shape):
                raise self._of_another_version()
            if not domain:
                own[...] = old
                continue
            place = pd.Index(learned[KEYS + domain]).get_indexer(data.features.keys[domain])
            own[:first] = old[:first]
            own[first:][place >= 0] = old[first:][place[place >= 0]]
            if name.startswith(ROWS) and len(old) > first:
                new = old[UNSEEN] if domain in learned["forgotten"] else old[first:].mean(axis=0)
                own[first:][place < 0] = new
        write()

    def _learned_by(self, made_of: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What was learned, by a ranker that was made of the same."""
        learned = self._learned()
        then, now = json.loads(str(learned["made_of"])), json.loads(json.dumps(made_of))
        if other := [name for name in now if then.get(name) != now[name]]:
            raise ValueError(
                f"the ranker of the earlier build has other {', '.join(other)}, so its weights mean nothing "
                f"here: the data set or the configuration changed; {ANEW}"
            )
        return learned

    def _learned(self) -> dict[str, np.ndarray]:
        learned = read_kept(self.file)
        if not {"made_of", "until", "markets", "forgotten"} <= learned.keys():
            raise self._of_another_version()
        return learned

    def _of_another_version(self) -> ValueError:
        return ValueError(f"{self.file} was left by another version of Pasar; {ANEW}")


Starts = Callable[[Path], Start | None]
"""What the training in a folder goes on from."""


def from_nothing(folder: Path) -> Start | None:
    """A `Starts` of trainings that begin with weights that are drawn."""
    return None


def after(work: Path) -> Starts:
    """Trainings go on from those in folders of the same names in an earlier build's work folder."""
    return lambda folder: Start(work / folder.name / FILE)


def keep(
    model: tf.keras.Model,
    data: TrainingSet,
    made_of: Mapping[str, Any],
    forgotten: Collection[str],
    folder: Path,
) -> None:
    """Write what a training ended with into its folder, for a later one to start from.

    Args:
        made_of: all that must be equal in two models for the weights of one to mean the same in the other, as
            JSON can tell it, under names that say what to change.
        forgotten: domains of ids that training showed as unseen now and then (`batches.forget_ids`).
    """
    examples = data.examples
    queries, pairs = examples.queries, examples.pairs
    markets = np.unique(queries.market[pairs.query[pairs.rows(TRAIN)]])
    about = {
        "made_of": np.array(json.dumps(made_of)),
        "until": np.array(int(queries.time[queries.rows(TRAIN)].max(initial=0)) + 1),
        "markets": np.array(examples.markets)[markets],
        "forgotten": np.array(forgotten, str),
    }
    keys = {KEYS + domain: array for domain, array in data.features.keys.items()}
    write_kept(folder / FILE, about | keys | _state(model)[0])


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
