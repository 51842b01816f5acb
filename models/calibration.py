"""Calibration of the ranker per market and task, shrunk market → region → world, as a graph behind it.

Platt, "Probabilistic outputs for support vector machines", 1999, on the logit of the ranker's probability,
with what a content is and costs: calibrated = sigmoid(slope * logit + intercept of its kind + price slope *
price). A slate takes first what is overrated most, so an error that goes with kind or price decides what is
shown, however right the probabilities are on average. Each level is fitted with the level above as its prior:
the market's with its region's, the region's with the world's, the world's with "as the ranker says".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from scipy.optimize import minimize
from scipy.special import expit, logit

from market.knobs import expect
from market.offers import OFFER_FEATURES
from market.profiles import profile
from workflows.examples import VALID

from .batches import RankingBatches, TrainingSet
from .graphs import TINY, finished, logit_nodes, tensor
from .members import Rankers
from .ranker import RankerConfig, predict, task_labels

import merlin.models.tf as mm  # isort: skip

DOUBT = 50.0
"""Validation outcomes at which the world's own fit and what the ranker says count the same."""
STEEPEST = 5.0
"""Slopes lie within exp(-5) and exp(5)."""


@dataclass(frozen=True)
class CalibrationConfig:
    """Knobs of the calibration.

    Attributes:
        shrinkage: validation outcomes at which a market's own fit and its region's count the same, and a
            region's and the world's (outcomes).
    """

    shrinkage: float = 50.0

    def __post_init__(self) -> None:
        expect(self, "calibration", "shrinkage", above=0)


@dataclass(frozen=True)
class Calibration:
    """What is done to probabilities of market m and task t.

    Attributes:
        slope: float32[M, T], of the logit; 1 leaves it as it is.
        price: float32[M, T], of what `price_local` has above `usual`; 0 leaves it as it is.
        intercept: float32[M, K, T], by the encoded id of the content's kind; 0 leaves it as it is.
        usual: the `price_local` that changes nothing. A content without a price counts as if it had this one.
    """

    slope: np.ndarray
    price: np.ndarray
    intercept: np.ndarray
    usual: float

    @classmethod
    def identity(cls, markets: int, kinds: int, tasks: int) -> Calibration:
        flat = np.zeros((markets, tasks), np.float32)
        return cls(flat + 1, flat, np.zeros((markets, kinds, tasks), np.float32), 0.0)

    def to_onnx(self) -> onnx.ModelProto:
        """uncalibrated float32[B, C, T], kind int64[B, C], price_local float32[B, C], market_index int64[B] →
        probabilities and ranker_probabilities float32[B, C, T]: calibrated, and as they came."""
        _, kinds, tasks = self.intercept.shape
        constants = {
            "slopes": self.slope,
            "price_slopes": self.price,
            "intercepts": self.intercept.reshape(-1, tasks),
            "kinds": np.int64(kinds),
            "usual": np.float32(self.usual),
            "zero": np.float32(0),
            "tiny": np.float32(TINY),
            "one": np.float32(1),
            "candidates": np.array([1], np.int64),
            "tasks": np.array([2], np.int64),
        }
        nodes = [
            helper.make_node("Identity", ["uncalibrated"], ["ranker_probabilities"]),
            *logit_nodes("uncalibrated", "logits"),
        ]
        for name in ("slope", "price_slope"):
            nodes.append(helper.make_node("Gather", [f"{name}s", "market_index"], [f"own_{name}"], axis=0))
            nodes.append(helper.make_node("Unsqueeze", [f"own_{name}", "candidates"], [name]))
        nodes += [
            helper.make_node("Mul", ["market_index", "kinds"], ["first_kind"]),
            helper.make_node("Unsqueeze", ["first_kind", "candidates"], ["first_kinds"]),
            helper.make_node("Add", ["first_kinds", "kind"], ["place"]),
            helper.make_node("Gather", ["intercepts", "place"], ["intercept"], axis=0),
            helper.make_node("Equal", ["price_local", "zero"], ["unknown"]),
            helper.make_node("Sub", ["price_local", "usual"], ["above_usual"]),
            helper.make_node("Where", ["unknown", "zero", "above_usual"], ["dear"]),
            helper.make_node("Unsqueeze", ["dear", "tasks"], ["dears"]),
            helper.make_node("Mul", ["logits", "slope"], ["scaled"]),
            helper.make_node("Mul", ["dears", "price_slope"], ["by_price"]),
            helper.make_node("Sum", ["scaled", "intercept", "by_price"], ["shifted"]),
            helper.make_node("Sigmoid", ["shifted"], ["probabilities"]),
        ]
        return finished(
            "calibration",
            nodes,
            [
                tensor("uncalibrated", TensorProto.FLOAT, "batch", "candidates", tasks),
                tensor("kind", TensorProto.INT64, "batch", "candidates"),
                tensor("price_local", TensorProto.FLOAT, "batch", "candidates"),
                tensor("market_index", TensorProto.INT64, "batch"),
            ],
            [
                tensor(name, TensorProto.FLOAT, "batch", "candidates", tasks)
                for name in ("probabilities", "ranker_probabilities")
            ],
            constants,
        )


@dataclass(frozen=True)
class Impressions:
    """What one task's calibration is fitted on.

    Attributes:
        scores: float64[P], logits of the ranker.
        labels: float64[P] in [0, 1].
        kind: int64[P], encoded ids below `kinds`.
        dear: float64[P], `price_local` above the usual.
    """

    scores: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    dear: np.ndarray
    kinds: int

    def __getitem__(self, rows: np.ndarray) -> Impressions:
        scores, labels, kind, dear = (x[rows] for x in (self.scores, self.labels, self.kind, self.dear))
        return Impressions(scores, labels, kind, dear, self.kinds)

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Calibrated logits, float64[P]; `theta` as in `_Fit`."""
        return np.exp(theta[0]) * self.scores + theta[1] * self.dear + theta[2:][self.kind]

    def by_kind(self, values: np.ndarray) -> np.ndarray:
        """Sums float64[K] of values [P]."""
        return np.bincount(self.kind, values, self.kinds)


@dataclass(frozen=True)
class _Fit:
    """Parameters of one level: log slope, price slope and the kinds' intercepts, float64[2 + K], and the
    information that one outcome of the level carries about them, float64[2 + K, 2 + K]; zero where there was
    none."""

    theta: np.ndarray
    information: np.ndarray


def _fit(shown: Impressions, prior: _Fit, shrinkage: float) -> _Fit:
    """Parameters with the highest posterior.

    The prior is a Gaussian around `prior.theta` with the information of `shrinkage` outcomes. The rarer of
    outcome and none is what informs, so that is what is counted.
    """
    scores, labels = shown.scores, shown.labels
    outcomes = min(labels.sum(), (1 - labels).sum())
    if not outcomes:
        return prior
    information = prior.information
    if not information.any():  # nothing above: as much as this level's own outcomes would tell there
        information = _information(shown, prior.theta) / outcomes

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        at = shown.logits(theta)
        off = theta - prior.theta
        pull = shrinkage * information @ off
        value = (np.logaddexp(0, at) - labels * at).sum() + off @ pull / 2
        gap = expit(at) - labels
        slopes = [np.exp(theta[0]) * (gap @ scores), gap @ shown.dear]
        return value, np.concatenate([slopes, shown.by_kind(gap)]) + pull

    bounds = [(-STEEPEST, STEEPEST), *[(None, None)] * (len(prior.theta) - 1)]
    theta = minimize(loss, prior.theta, jac=True, method="L-BFGS-B", bounds=bounds).x
    return _Fit(theta, _information(shown, theta) / outcomes)


def _information(shown: Impressions, theta: np.ndarray) -> np.ndarray:
    """Fisher information of all rows about the parameters, float64[2 + K, 2 + K]."""
    chance = expit(shown.logits(theta))
    weight = chance * (1 - chance)
    slopes = np.stack([np.exp(theta[0]) * shown.scores, shown.dear])
    made = np.diag(np.concatenate([[0.0, 0.0], shown.by_kind(weight)]))
    made[:2, :2] = (slopes * weight) @ slopes.T
    made[:2, 2:] = [shown.by_kind(weight * column) for column in slopes]
    made[2:, :2] = made[:2, 2:].T
    return made


def fit_calibration(
    predicted: np.ndarray,
    labels: np.ndarray,
    market: np.ndarray,
    kind: np.ndarray,
    price_local: np.ndarray,
    *,
    markets: tuple[str, ...],
    kinds: int,
    config: CalibrationConfig,
) -> Calibration:
    """Fit each task's world, then its regions, then its markets.

    A market without outcomes gets its region's parameters, a region without any the world's, and a task
    without any stays as the ranker says. A kind that was never shown gets the mean of those that were.

    Args:
        predicted: float[P, T] in [0, 1], the ranker's probabilities.
        labels: float[P, T] in [0, 1]; a share, such as that of watch time, is a label too.
        market: int64[P], places in `markets`.
        kind: int64[P], encoded ids below `kinds`.
        price_local: float32[P], the pair feature; 0 where there is no price.
        markets: codes of countries, or "XX"; any other raises `UnknownMarket`.
    """
    region = np.array([profile(code).region for code in markets])
    tasks = predicted.shape[1]
    priced = price_local != 0
    usual = float(price_local[priced].mean()) if priced.any() else 0.0
    dear = np.where(priced, price_local - usual, 0).astype(np.float64)
    as_it_is = _Fit(np.zeros(2 + kinds), np.zeros((2 + kinds, 2 + kinds)))
    theta = np.zeros((len(markets), tasks, 2 + kinds))
    for task in range(tasks):
        scores = logit(np.clip(predicted[:, task].astype(np.float64), TINY, 1 - 1e-7))
        shown = Impressions(scores, labels[:, task].astype(np.float64), kind, dear, kinds)
        world = _fit(shown, as_it_is, DOUBT)
        for name in np.unique(region):
            inside = np.flatnonzero(np.isin(market, np.flatnonzero(region == name)))
            regional = _fit(shown[inside], world, config.shrinkage)
            for place in np.flatnonzero(region == name):
                own = np.flatnonzero(market == place)
                theta[place, task] = _fit(shown[own], regional, config.shrinkage).theta
    share = np.bincount(kind, minlength=kinds) / max(len(kind), 1)
    intercept = theta[..., 2:].swapaxes(1, 2)
    intercept[:, share == 0] = np.einsum("k,mkt->mt", share, intercept)[:, None]
    slope, price = np.exp(theta[..., 0]).astype(np.float32), theta[..., 1].astype(np.float32)
    return Calibration(slope, price, intercept.astype(np.float32), usual)


def calibrate(
    model: mm.Model | Rankers,
    data: TrainingSet,
    tasks: tuple[str, ...],
    ranker: RankerConfig,
    config: CalibrationConfig,
) -> Calibration:
    """The calibration of a trained ranker on the validation impressions.

    Where only positives were logged the negatives are drawn, so that their share says nothing of the world:
    the ranker's probabilities stay as they are.
    """
    examples, contents = data.examples, data.features.content
    pairs, queries, markets = examples.pairs, examples.queries, examples.markets
    rows = np.arange(pairs.rows(VALID).start, pairs.rows(VALID).stop)
    kinds = int(contents.schema["kind"].int_domain.max) + 1
    if examples.feedback == "positives" or not len(rows):
        return Calibration.identity(len(markets), kinds, len(tasks))
    labels = task_labels(examples, ranker.min_outcomes)
    batches = RankingBatches(data, rows, labels, batch_size=ranker.batch_size, shuffle=False)
    predicted, truth = predict(model, batches)
    query, content = pairs.query[rows], pairs.content[rows]
    market = queries.market[query]
    offer = data.offers(market, content, data.speaks[queries.user[query]])
    return fit_calibration(
        predicted,
        truth,
        market,
        contents.arrays["kind"][content],
        offer[:, OFFER_FEATURES.index("price_local")],
        markets=markets,
        kinds=kinds,
        config=config,
    )
