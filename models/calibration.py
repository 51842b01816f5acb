"""Calibration of the ranker per market and task, shrunk market → region → world, as a graph behind it.

Platt, "Probabilistic outputs for support vector machines", 1999, on the logit of the ranker's probability:
calibrated = sigmoid(slope * logit + intercept). The slope is positive, so the order of one task's predictions
in a market never changes. Each level is fitted with the level above as its prior: the market's with its
region's, the region's with the world's, the world's with "as the ranker says".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize
from scipy.special import expit, logit

from market.profiles import profile
from workflows.examples import VALID

from .batches import RankingBatches, TrainingSet
from .ranker import RankerConfig, predict, task_labels

import merlin.models.tf as mm  # isort: skip

FILE = "calibration.npy"
TINY = 1e-30
"""Least probability and least doubt that a logit is taken of."""
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
        if not self.shrinkage > 0:
            raise ValueError(f"calibration.shrinkage is {self.shrinkage}; it must be above 0")


@dataclass(frozen=True)
class Calibration:
    """What is done to probabilities of market m and task t.

    Attributes:
        slope, intercept: float32[M, T]; 1 and 0 leave a probability as it is.
    """

    slope: np.ndarray
    intercept: np.ndarray

    @classmethod
    def identity(cls, markets: int, tasks: int) -> Calibration:
        return cls(np.ones((markets, tasks), np.float32), np.zeros((markets, tasks), np.float32))

    @classmethod
    def from_array(cls, table: np.ndarray) -> Calibration:
        """From float32[2, M, T], as `to_array` gives it."""
        return cls(table[0], table[1])

    def to_array(self) -> np.ndarray:
        return np.stack([self.slope, self.intercept])

    def undo(self, probabilities: np.ndarray, market: np.ndarray) -> np.ndarray:
        """What the ranker had said: calibrated probabilities [P, T] of markets int64[P] → float64[P, T]."""
        scores = logit(np.clip(np.asarray(probabilities, np.float64), TINY, 1 - 1e-7))
        return expit((scores - self.intercept[market]) / self.slope[market])

    def to_onnx(self) -> onnx.ModelProto:
        """uncalibrated float32[B, C, T], market_index int64[B] → probabilities float32[B, C, T]."""
        tasks = self.slope.shape[1]
        constants = {
            "slopes": self.slope.astype(np.float32),
            "intercepts": self.intercept.astype(np.float32),
            "tiny": np.float32(TINY),
            "one": np.float32(1),
            "candidates": np.array([1], np.int64),
        }
        nodes = [
            helper.make_node("Max", ["uncalibrated", "tiny"], ["chance"]),
            helper.make_node("Log", ["chance"], ["log_chance"]),
            helper.make_node("Sub", ["one", "uncalibrated"], ["rest"]),
            helper.make_node("Max", ["rest", "tiny"], ["doubt"]),
            helper.make_node("Log", ["doubt"], ["log_doubt"]),
            helper.make_node("Sub", ["log_chance", "log_doubt"], ["logits"]),
        ]
        for name in ("slope", "intercept"):
            nodes.append(helper.make_node("Gather", [f"{name}s", "market_index"], [f"own_{name}"], axis=0))
            nodes.append(helper.make_node("Unsqueeze", [f"own_{name}", "candidates"], [name]))
        nodes += [
            helper.make_node("Mul", ["logits", "slope"], ["scaled"]),
            helper.make_node("Add", ["scaled", "intercept"], ["shifted"]),
            helper.make_node("Sigmoid", ["shifted"], ["probabilities"]),
        ]
        for place, node in enumerate(nodes):
            node.name = f"{node.op_type}_{place}"

        def of(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            nodes,
            "calibration",
            [
                of("uncalibrated", TensorProto.FLOAT, "batch", "candidates", tasks),
                of("market_index", TensorProto.INT64, "batch"),
            ],
            [of("probabilities", TensorProto.FLOAT, "batch", "candidates", tasks)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


@dataclass(frozen=True)
class _Fit:
    """Parameters of one level: log slope and intercept, float64[2], and the information that one outcome of
    the level carries about them, float64[2, 2]; zero where there was none."""

    theta: np.ndarray
    information: np.ndarray


AS_IT_IS = _Fit(np.zeros(2), np.zeros((2, 2)))


def _fit(scores: np.ndarray, labels: np.ndarray, prior: _Fit, shrinkage: float) -> _Fit:
    """Log slope and intercept with the highest posterior.

    The prior is a Gaussian around `prior.theta` with the information of `shrinkage` outcomes. The rarer of
    outcome and none is what informs, so that is what is counted.
    """
    outcomes = min(labels.sum(), (1 - labels).sum())
    if not outcomes:
        return prior
    information = prior.information
    if not information.any():  # nothing above: as much as this level's own outcomes would tell there
        information = _information(scores, prior.theta) / outcomes

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        steep = np.exp(theta[0])
        at = steep * scores + theta[1]
        off = theta - prior.theta
        pull = shrinkage * information @ off
        value = (np.logaddexp(0, at) - labels * at).sum() + off @ pull / 2
        gap = expit(at) - labels
        return value, np.array([(gap * steep * scores).sum(), gap.sum()]) + pull

    bounds = [(-STEEPEST, STEEPEST), (None, None)]
    theta = minimize(loss, prior.theta, jac=True, method="L-BFGS-B", bounds=bounds).x
    return _Fit(theta, _information(scores, theta) / outcomes)


def _information(scores: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Fisher information of all rows about (log slope, intercept), float64[2, 2]."""
    steep = np.exp(theta[0])
    chance = expit(steep * scores + theta[1])
    weight = chance * (1 - chance)
    cross = (weight * steep * scores).sum()
    return np.array([[(weight * (steep * scores) ** 2).sum(), cross], [cross, weight.sum()]])


def fit_calibration(
    predicted: np.ndarray,
    labels: np.ndarray,
    market: np.ndarray,
    markets: tuple[str, ...],
    config: CalibrationConfig,
) -> Calibration:
    """Fit each task's world, then its regions, then its markets.

    A market without outcomes gets its region's parameters, a region without any the world's, and a task
    without any stays as the ranker says.

    Args:
        predicted: float[P, T] in [0, 1], the ranker's probabilities.
        labels: float[P, T] in [0, 1]; a share, such as that of watch time, is a label too.
        market: int64[P], places in `markets`.
        markets: codes; those without a profile raise `UnknownMarket`.
    """
    region = np.array([profile(code).region for code in markets])
    tasks = predicted.shape[1]
    theta = np.zeros((len(markets), tasks, 2))
    for task in range(tasks):
        scores = logit(np.clip(predicted[:, task].astype(np.float64), TINY, 1 - 1e-7))
        truth = labels[:, task].astype(np.float64)
        world = _fit(scores, truth, AS_IT_IS, config.shrinkage)
        for name in np.unique(region):
            inside = np.isin(market, np.flatnonzero(region == name))
            regional = _fit(scores[inside], truth[inside], world, config.shrinkage)
            for place in np.flatnonzero(region == name):
                own = market == place
                theta[place, task] = _fit(scores[own], truth[own], regional, config.shrinkage).theta
    return Calibration(np.exp(theta[..., 0]).astype(np.float32), theta[..., 1].astype(np.float32))


def calibrate(
    model: mm.Model,
    data: TrainingSet,
    tasks: tuple[str, ...],
    ranker: RankerConfig,
    config: CalibrationConfig,
) -> Calibration:
    """The calibration of a trained ranker on the validation impressions.

    Where only positives were logged the negatives are drawn, so that their share says nothing of the world:
    the ranker's probabilities stay as they are.
    """
    examples = data.examples
    markets = examples.markets
    rows = np.arange(examples.pairs.rows(VALID).start, examples.pairs.rows(VALID).stop)
    if examples.feedback == "positives" or not len(rows):
        return Calibration.identity(len(markets), len(tasks))
    labels = task_labels(examples, ranker.min_outcomes)
    batches = RankingBatches(data, rows, labels, batch_size=ranker.batch_size, shuffle=False)
    predicted, truth = predict(model, batches)
    market = examples.queries.market[examples.pairs.query[rows]]
    return fit_calibration(predicted, truth, market, markets, config)
