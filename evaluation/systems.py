"""The baselines as systems that `runs.evaluate` compares, and the set of them that suits a task."""

from collections.abc import Callable

import numpy as np

from evaluation.baselines import EASE, Baseline, Blended, GraphFilter, ItemKNN, Popularity
from evaluation.tasks import ProgressLog, Task

EASE_ITEMS = 12_000
EASE_REGULARISATION = {"taobao": 30.0, "tiktok": 50.0}
"""By data set, as the published figures were computed; any other one takes `DEFAULT_REGULARISATION`."""
DEFAULT_REGULARISATION = 100.0
KNOWN = "validation known"
"""Ends the name of a system whose histories hold the validation rows; those of all others end before them."""
POPULARITY_WEIGHT = 0.005
"""Of log popularity beside EASE's scores; best of 0.001 to 0.1 on xmarket's validation part."""


class Collaborative:
    """A baseline over the matrix of users and items.

    Args:
        name: of the system.
        build: makes the baseline for a task.
        auxiliary: the matrix also has the pairs of the task's auxiliary outcomes.
    """

    def __init__(self, name: str, build: Callable[[Task], Baseline], *, auxiliary: bool = False):
        self.name = name
        self.build = build
        self.auxiliary = auxiliary

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None:
        """Fits the baseline to the task's training pairs."""
        interactions = task.matrix(task.target, *(task.auxiliary if self.auxiliary else ()))
        self.baseline = self.build(task).fit(interactions)

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """float32[B, I], or [B, C] of the candidates."""
        scores = self.baseline.scores(users)
        return scores if candidates is None else np.take_along_axis(scores, candidates, axis=1)


class ValidationKnown(Collaborative):
    """EASE whose users' validation rows are history when it is asked, as they are when a feed is served.

    The model is that of the training rows. Contents of validation rows are not listed again.
    """

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None:
        """Fits the baseline to the task's training pairs, then tells it the validation pairs."""
        super().fit(task, seed=seed, progress=progress)
        self.wanted = task.validation()
        assert isinstance(self.baseline, EASE)
        self.baseline.knowing(task.matrix() + self.wanted)

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """float32[B, I], or [B, C] of the candidates."""
        scores = self.baseline.scores(users)
        scores[self.wanted[users].nonzero()] = np.finfo(np.float32).min
        return scores if candidates is None else np.take_along_axis(scores, candidates, axis=1)


class ItemRate:
    """The share of an item's training rows with the target outcome, shrunk towards the share of all rows.

    Args:
        prior: rows that the share of all rows counts for.
    """

    name = "item rate"

    def __init__(self, prior: float = 10.0):
        self.prior = prior

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None:
        """Counts rows and outcomes per item."""
        happened = task.train.positive(task.target)
        rows = np.bincount(task.train.item, minlength=task.items)
        positive = np.bincount(task.train.item, weights=happened, minlength=task.items)
        self.rate = ((positive + self.prior * happened.mean()) / (rows + self.prior)).astype(np.float32)

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """float32[B, I], or [B, C] of the candidates, the rates of the items."""
        return self.rate[_all(candidates, len(users), len(self.rate))]


class MedianAmount:
    """The median of the target amount (watch time) among training contents of about the same duration.

    Args:
        bins: quantile bins of the duration; 1 gives the median of all rows.
    """

    def __init__(self, bins: int):
        self.bins = bins
        self.name = "median" if bins == 1 else "median by duration"

    def fit(self, task: Task, *, seed: int, progress: ProgressLog | None = None) -> None:
        """Takes the medians per bin; a bin without rows takes the median of all."""
        amount = task.train.outcomes[str(task.target)]
        duration = task.tables.contents["duration_s"].to_numpy()
        inner = np.quantile(duration[task.train.item], np.linspace(0, 1, self.bins + 1)[1:-1])
        bin_of = np.searchsorted(inner, duration, side="right")
        medians = np.full(self.bins, np.median(amount), dtype=np.float32)
        for place in np.unique(bin_of[task.train.item]):
            medians[place] = np.median(amount[bin_of[task.train.item] == place])
        self.amount = medians[bin_of]

    def score(self, users: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """float32[B, I], or [B, C] of the candidates, in the unit of the amount."""
        return self.amount[_all(candidates, len(users), len(self.amount))]


def baselines(task: Task) -> list[Collaborative] | list[ItemRate] | list[MedianAmount]:
    """The baselines that a task's figures are printed beside.

    EASE is restricted to the most popular contents where there are more than `EASE_ITEMS`, and its name says
    so.
    """
    if task.target == "watch_s":
        return [MedianAmount(1), MedianAmount(50)]
    if task.target == "like" and "negative" in task.train.outcomes:
        return [ItemRate()]
    ease = "ease" if task.items <= EASE_ITEMS else f"ease ({EASE_ITEMS:,} most popular)"

    def build_ease(task: Task) -> EASE:
        strength = EASE_REGULARISATION.get(task.tables.name, DEFAULT_REGULARISATION)
        return EASE(strength, most_popular=EASE_ITEMS, dtype=np.float32)

    systems = [
        Collaborative("popularity", lambda task: Popularity(task.user_market)),
        Collaborative("item neighbours", lambda task: ItemKNN()),
        Collaborative(ease, build_ease),
        Collaborative("gf-cf", lambda task: GraphFilter()),
    ]
    if len(task.markets) > 1:

        def build_blended(task: Task) -> Blended:
            return Blended(build_ease(task), Popularity(task.user_market), POPULARITY_WEIGHT)

        systems.append(Collaborative(f"{ease} + log popularity", build_blended))
    if task.valid is not None:
        systems.append(ValidationKnown(f"{ease}, {KNOWN}", build_ease))
    if task.auxiliary:
        systems.append(
            Collaborative(f"{ease}, with {' and '.join(task.auxiliary)}s", build_ease, auxiliary=True)
        )
    return systems


def _all(candidates: np.ndarray | None, users: int, items: int) -> np.ndarray:
    return np.broadcast_to(np.arange(items), (users, items)) if candidates is None else candidates
