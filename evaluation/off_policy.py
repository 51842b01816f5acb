"""What a policy would have earned, from a log that another policy wrote with its propensities.

Every estimator weighs a logged row by w = target / logged, how much likelier the judged policy was to do what
the logging policy did. The logging policy must give a chance to all that the judged one may do: an action
that it never takes is in no row, and what it would earn is left out unseen.

A row is one decision. With a row per position of a slate, each position is judged with what the logging
policy put above it. To judge whole slates, give one row per slate: its reward in all, and the product over
positions of the conditional probabilities.
"""

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import Interval, effective_number, mean_interval


@dataclass(frozen=True)
class Estimate:
    """The mean reward of a policy per row, by one estimator, with the ends of its 95 % interval.

    Intervals are first-order and rest on many weighted rewards. Where `effective` times the rate of rewards
    is but a few, they are too short: the rare rows of large weight that would widen them were not drawn.

    Attributes:
        estimator: "on-policy" (the logging policy's own mean, unweighted), "ips", "snips" or "dr".
        value: mean reward per row, in the reward's unit.
        low: lower end of the interval; NaN where all rows are of one group.
        high: upper end.
        effective: rows that would tell as much if all weighed the same, (sum w)² / sum w² (Kish, "Survey
            Sampling", Wiley 1965).
        largest: largest weight; 1 for "on-policy".
        rows: rows of the log.
    """

    estimator: str
    value: float
    low: float
    high: float
    effective: float
    largest: float
    rows: int


def estimate(
    reward: np.ndarray,
    logged: np.ndarray,
    target: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    expected: np.ndarray | None = None,
) -> list[Estimate]:
    """The value of the judged policy by every estimator that the columns allow, the log's own mean first.

    - "ips", mean of w * reward: unbiased, wide (Horvitz and Thompson, "A generalization of sampling without
      replacement from a finite universe", JASA 1952).
    - "snips", sum of w * reward over sum of w: consistent, and within the range of the rewards (Swaminathan
      and Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015). Its interval is
      the delta method's.
    - "dr", mean of expected + w * (reward - predicted): unbiased if the propensities or the model are right,
      and narrower than "ips" the better the model (Dudik, Langford and Li, "Doubly robust policy evaluation
      and learning", ICML 2011). The model must not have seen these rewards: fit it on another log, or on
      other folds.

    Args:
        reward: float[N], in any unit.
        logged: float[N] in (0, 1], probability with which the logging policy took the action it took.
        target: float[N] in [0, 1], probability with which the judged policy would take that same action.
        groups: [N], such as people; rows of equal groups are not independent. None: all rows are.
        predicted: float[N], a model's reward of the logged action.
        expected: float[N], the same model's mean reward of an action of the judged policy in that row.

    Raises:
        ValueError: there are no rows; lengths differ; a value is NaN or infinite; a propensity is out of
            range; the judged policy takes none of the logged actions; predicted and expected are not both
            given or both left out.
    """
    if (predicted is None) != (expected is None):
        raise ValueError("only one of predicted and expected is given: DR needs both, the rest neither")
    reward = _column("reward", reward, np.size(reward))
    rows = len(reward)
    if not rows:
        raise ValueError("no rows: an estimate from an empty log is undefined")
    groups = np.arange(rows) if groups is None else np.asarray(groups)
    if groups.shape != (rows,):
        raise ValueError(f"groups has shape {groups.shape}, reward has {rows} rows: give one group a row")
    with np.errstate(over="ignore"):
        weight = _probability("target", target, rows) / _probability("logged", logged, rows, positive=True)
    if not np.isfinite(weight).all():
        raise ValueError("target over logged is infinite: a logged propensity is too small for a weight")
    if not weight.any():
        raise ValueError(
            f"target is 0 in all {rows} rows: the log holds none of the judged policy's actions, so SNIPS is "
            "undefined; judge it on a log that explores them"
        )
    effective, largest = effective_number(weight), float(weight.max())

    def told(estimator: str, value: Interval) -> Estimate:
        return Estimate(estimator, *value, effective, largest, rows)

    estimates = [
        Estimate("on-policy", *mean_interval(reward, groups), float(rows), 1.0, rows),
        told("ips", mean_interval(weight * reward, groups)),
        told("snips", mean_interval(reward, groups, weight)),
    ]
    if predicted is not None and expected is not None:
        surprise = reward - _column("predicted", predicted, rows)
        corrected = _column("expected", expected, rows) + weight * surprise
        estimates.append(told("dr", mean_interval(corrected, groups)))
    return estimates


def _column(name: str, values: np.ndarray, rows: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (rows,):
        raise ValueError(f"{name} has shape {values.shape}, reward has {rows} rows: give one number a row")
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(f"{wrong} of {rows} values of {name} are NaN or infinite: leave those rows out")
    return values


def _probability(name: str, values: np.ndarray, rows: int, positive: bool = False) -> np.ndarray:
    values = _column(name, values, rows)
    wrong = (values < 0) | (values > 1) | (positive & (values == 0))
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {rows} values of {name}, such as {values[wrong][0]:g}, are not in "
            + ("(0, 1]: log the probability of each draw with it" if positive else "[0, 1]")
        )
    return values
