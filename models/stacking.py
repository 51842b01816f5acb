"""Stacking: the ranker and the signals of retrieval become one score, as validation rows weigh them.

Where only positives were logged, a ranker learns from negatives that were drawn, and often from other
histories than those it is asked with. What it adds to the item graph and the two-tower differs from log to
log, so a linear model over their scores (Wolpert, "Stacked generalization", Neural Networks 1992) is fitted
to the lists that retrieval brings, with the likelihood of a choice from each (McFadden, "Conditional logit
analysis of qualitative choice behavior", 1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from scipy.optimize import brentq, minimize
from scipy.special import expit, logsumexp

from market.knobs import expect
from market.statistics import PAIR_FEATURES

from .graphs import TINY, finished, logit_nodes, tensor

FILE = "stacking.npy"
#: What is weighed: the logit of the ranker; the item graph's affinity as a sum of edges and as its logarithm,
#: and the same of the graph of the market's own people; what a low-rank filter adds to the edges; the logs of
#: the content's popularity in the market, at all times and around the history's last event; the log-odds that
#: it was ordered where it was wanted; the cosine of query and content; whether the content is in the history.
SIGNALS = (
    "ranker",
    "affinity",
    "log_affinity",
    "own_affinity",
    "log_own_affinity",
    "low_rank",
    "popularity",
    "season",
    "converts",
    "cosine",
    "again",
)
AFFINITY, POPULARITY, SEASON = map(PAIR_FEATURES.index, ("affinity", "popularity_market", "season"))


@dataclass(frozen=True)
class StackingConfig:
    """Knobs of the stacking, where only positives were logged.

    Attributes:
        queries: validation queries whose retrieved candidates are weighed; 0 leaves the order to the
            ranker (queries).
        drawn: the queries' candidates are also drawn at random from the market, as many as are retrieved; for
            a ranker that is asked about candidates which retrieval would not bring.
        strength: of the prior, which is the order of the ranker alone; 1 lets each weight be off by one
            standard deviation of its signal.
    """

    queries: int = 4000
    drawn: bool = False
    strength: float = 1.0

    def __post_init__(self) -> None:
        expect(self, "stacking", "queries", least=0)
        expect(self, "stacking", "strength", above=0)


@dataclass(frozen=True)
class Stacking:
    """score = constant + Σ signal · (weight + per_event · log(1 + events of the history)).

    Attributes:
        weights: float32[2, S], `weight` and `per_event` of `SIGNALS`.
        constant: what makes the mean chance of a candidate the share of those that were wanted.
    """

    weights: np.ndarray
    constant: float

    def to_array(self) -> np.ndarray:
        """float32[2S + 1]"""
        return np.append(self.weights.ravel(), self.constant).astype(np.float32)

    def to_onnx(self, history_length: int, content_numbers: int) -> onnx.ModelProto:
        """The ranker's graph goes on: its probabilities, and tensors that it has or retrieval gives.

        unstacked float32[B, C, 1], content_numbers float32[B, C, G], candidates int64[B, C], recent
        int64[B, L], retrieval_score, market_affinity, low_rank_affinity and conversion float32[B, C] →
        probabilities float32[B, C, 1].
        """
        place = content_numbers - len(PAIR_FEATURES)
        constants = {
            "tiny": np.float32(TINY),
            "one": np.float32(1),
            "two": np.float32(2),
            "none": np.int64(-1),
            "last": np.array([2], np.int64),
            "second": np.array([1], np.int64),
            "of_affinity": np.array([place + AFFINITY], np.int64),
            "of_popularity": np.array([place + POPULARITY], np.int64),
            "of_season": np.array([place + SEASON], np.int64),
            "weight": self.weights[0].astype(np.float32),
            "per_event": self.weights[1].astype(np.float32),
            "constant": np.float32(self.constant),
        }
        nodes = [
            *logit_nodes("unstacked", "ranker"),
            helper.make_node("Gather", ["content_numbers", "of_affinity"], ["log_affinity"], axis=2),
            helper.make_node("Mul", ["log_affinity", "two"], ["twice"]),
            helper.make_node("Exp", ["twice"], ["affinity"]),
            helper.make_node("Unsqueeze", ["market_affinity", "last"], ["log_own_affinity"]),
            helper.make_node("Mul", ["log_own_affinity", "two"], ["twice_own"]),
            helper.make_node("Exp", ["twice_own"], ["own_affinity"]),
            helper.make_node("Unsqueeze", ["low_rank_affinity", "last"], ["low_rank"]),
            helper.make_node("Gather", ["content_numbers", "of_popularity"], ["popularity"], axis=2),
            helper.make_node("Gather", ["content_numbers", "of_season"], ["season"], axis=2),
            helper.make_node("Unsqueeze", ["conversion", "last"], ["converts"]),
            helper.make_node("Unsqueeze", ["retrieval_score", "last"], ["cosine"]),
            helper.make_node("Unsqueeze", ["candidates", "last"], ["each"]),
            helper.make_node("Unsqueeze", ["recent", "second"], ["history"]),
            helper.make_node("Equal", ["each", "history"], ["equal"]),
            helper.make_node("Cast", ["equal"], ["found"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["found"], ["again"], axes=[2], keepdims=1),
            helper.make_node("Concat", list(SIGNALS), ["signals"], axis=2),
            helper.make_node("Greater", ["recent", "none"], ["event"]),
            helper.make_node("Cast", ["event"], ["counted"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["counted", "second"], ["events"], keepdims=1),
            helper.make_node("Add", ["events", "one"], ["more"]),
            helper.make_node("Log", ["more"], ["length"]),
            helper.make_node("Mul", ["length", "per_event"], ["longer"]),
            helper.make_node("Add", ["longer", "weight"], ["own"]),
            helper.make_node("Unsqueeze", ["own", "last"], ["column"]),
            helper.make_node("MatMul", ["signals", "column"], ["weighed"]),
            helper.make_node("Add", ["weighed", "constant"], ["score"]),
            helper.make_node("Sigmoid", ["score"], ["probabilities"]),
        ]
        of_pairs = ("retrieval_score", "market_affinity", "low_rank_affinity", "conversion")
        return finished(
            "stacking",
            nodes,
            [
                tensor("unstacked", TensorProto.FLOAT, "batch", "candidates", 1),
                tensor("content_numbers", TensorProto.FLOAT, "batch", "candidates", content_numbers),
                tensor("candidates", TensorProto.INT64, "batch", "candidates"),
                tensor("recent", TensorProto.INT64, "batch", history_length),
                *(tensor(name, TensorProto.FLOAT, "batch", "candidates") for name in of_pairs),
            ],
            [tensor("probabilities", TensorProto.FLOAT, "batch", "candidates", 1)],
            constants,
        )


def signals(
    chance: np.ndarray,
    content_numbers: np.ndarray,
    candidates: np.ndarray,
    recent: np.ndarray,
    cosine: np.ndarray,
    market_affinity: np.ndarray,
    low_rank_affinity: np.ndarray,
    conversion: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`SIGNALS` float32[B, C, S] and the log of 1 + the events of each history, float32[B].

    Args:
        chance: float32[B, C], the ranker's.
        content_numbers: float32[B, C, G], `PAIR_FEATURES` last.
        candidates: int64[B, C]; recent: int64[B, L]; -1 fills.
        cosine: float32[B, C], of query and content.
        market_affinity, low_rank_affinity, conversion: float32[B, C], as retrieval gives them.
    """
    pairs = content_numbers[..., -len(PAIR_FEATURES) :]
    ranker = np.log(np.maximum(chance, TINY)) - np.log(np.maximum(1 - chance, TINY))
    again = (candidates[..., None] == recent[:, None]).any(axis=-1)
    log_affinity = pairs[..., AFFINITY]
    popularity, season = pairs[..., POPULARITY], pairs[..., SEASON]
    affinities = np.exp(2 * log_affinity), log_affinity, np.exp(2 * market_affinity), market_affinity
    made = ranker, *affinities, low_rank_affinity, popularity, season, conversion, cosine, again
    return np.stack(made, axis=-1, dtype=np.float32), np.log1p((recent >= 0).sum(axis=1)).astype(np.float32)


def fit_stacking(
    signal: np.ndarray, length: np.ndarray, wanted: np.ndarray, present: np.ndarray, strength: float
) -> Stacking | None:
    """The weights with the highest posterior; None where no list holds anything wanted.

    The likelihood is that of choosing, from each list, what was wanted there; the prior a Gaussian around the
    order of the ranker alone.

    Args:
        signal: float32[Q, C, S]; length: float32[Q], see `signals`.
        wanted: bool[Q, C]; lists without any say nothing.
        present: bool[Q, C], where there is a candidate.
        strength: precision of the prior, per squared standard deviation of a signal.
    """
    some = np.flatnonzero((wanted & present).any(axis=1))
    if not len(some):
        return None
    signal, length, present = signal[some], length[some, None, None], present[some]
    share = (wanted[some] & present).astype(np.float64)
    share /= share.sum(axis=1, keepdims=True)
    # Within a list the mean of a signal changes nothing; one that is the same everywhere has no weight.
    spread = np.concatenate([signal[present].std(axis=0), (signal * length)[present].std(axis=0)])
    scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0)
    prior = np.zeros(len(scale))
    prior[SIGNALS.index("ranker")] = spread[SIGNALS.index("ranker")]
    plain, longer = np.split(scale, 2)
    # What was wanted minus what is expected, per signal, needs no copy of the signals times their length.
    found = np.einsum("qc,qcs->qs", share, signal)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        own = theta[: len(plain)] * plain + theta[len(plain) :] * longer * length[:, 0]
        score = np.where(present, np.einsum("qcs,qs->qc", signal, own.astype(np.float32)), -np.inf)
        total = logsumexp(score, axis=1, keepdims=True)
        expected = np.einsum("qc,qcs->qs", np.exp(score - total).astype(np.float32), signal)
        gap = expected - found
        off = theta - prior
        value = (total[:, 0] - (found * own).sum(axis=1)).sum() + strength / 2 * off @ off
        gradient = np.concatenate([gap.sum(axis=0) * plain, (gap * length[:, 0]).sum(axis=0) * longer])
        return float(value), gradient + strength * off

    theta = minimize(loss, prior, jac=True, method="L-BFGS-B").x
    weights = (theta * scale).reshape(2, -1).astype(np.float32)
    score = np.einsum("qcs,qs->qc", signal, weights[0] + weights[1] * length[:, 0])[present]
    goal = (wanted[some] & present).sum() / present.sum()
    low, high = -score.max() - 40.0, -score.min() + 40.0
    constant = brentq(lambda c: expit(score + c).mean() - goal, low, high)
    return Stacking(weights, float(constant))
