"""Metrics of ranking, classification and regression, on whole batches at once.

Ranking metrics work in steps: `top_k` turns scores into items, `hits` asks which of them are relevant, and
`recall`, `hit_rate` and `ndcg` turn the hits of a query into one number. They agree with ranx, and a test
says so. AUC is scikit-learn's, with the errors of degenerate input made readable.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats
from sklearn import metrics as sklearn_metrics

NO_ITEM = -1  # fills the end of a list that is shorter than k
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean (or a statistic) with the ends of its confidence interval, of `CONFIDENCE` unless another is
    asked for."""

    mean: float
    low: float
    high: float


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best columns of each row, best first; of equal scores the lower column comes first.

    Args:
        scores: float32[B, I]; -inf marks an item that must not be listed.
        k: length of the lists.

    Returns:
        int64[B, k]; `NO_ITEM` fills lists that run out of items.

    Raises:
        ValueError: a score is NaN, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    scores = np.asarray(scores, dtype=np.float32)
    result = np.full((len(scores), k), NO_ITEM, dtype=np.int64)
    best = _group_maxima(scores, k)
    if np.isnan(best).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN: the model diverged")
    last = max(best.shape[1] - k, 0)
    threshold = np.partition(best, last, axis=1)[:, last, None]
    # All that may be among the first k, ties included: a group below the threshold has none of them.
    row, group = np.nonzero((best >= threshold) & (best > -np.inf))
    columns = group[:, None] + np.arange(0, scores.shape[1], best.shape[1])
    inside = columns < scores.shape[1]
    found = scores[row[:, None], np.where(inside, columns, 0)]
    inside &= (found >= threshold[row]) & (found > -np.inf)
    rows, columns, found = np.repeat(row, inside.sum(axis=1)), columns[inside], found[inside]
    order = np.lexsort((columns, -found, rows))
    rows, columns = rows[order], columns[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(scores)))[rows]
    listed = place < k
    result[rows[listed], place[listed]] = columns[listed]
    return result


def _group_maxima(scores: np.ndarray, k: int) -> np.ndarray:
    """The highest score of each group of columns, float32[B, G]: group g has the columns g, g + G, g + 2G, …

    There are at least k groups, so the k-th highest maximum is no more than the k-th highest score, and a
    maximum of many columns costs much less than a partition of them.
    """
    items = scores.shape[1]
    if items < 8 * k:
        return scores
    groups = max(2 * k, int(np.sqrt(items * k)))
    whole = items // groups * groups
    best = scores[:, :whole].reshape(len(scores), -1, groups).max(axis=1)
    rest = items - whole
    np.maximum(best[:, :rest], scores[:, whole:], out=best[:, :rest])
    return best


def hits(lists: np.ndarray, relevant: sp.csr_matrix) -> np.ndarray:
    """Which entries of each list are relevant: bool[B, k] from int64[B, k] and a CSR matrix [B, I]."""
    rows, items = relevant.shape
    if len(lists) != rows:
        raise ValueError(f"{len(lists)} lists for {rows} rows of relevant items")
    row_of = np.repeat(np.arange(rows, dtype=np.int64), np.diff(relevant.indptr))
    keys = np.unique(row_of * items + relevant.indices)
    wanted = np.arange(rows, dtype=np.int64)[:, None] * items + lists
    if not len(keys):
        return np.zeros(lists.shape, dtype=bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return (keys[place] == wanted) & (lists != NO_ITEM)


def recall(hit: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Recall@K per query: hits over all relevant items (not over min(K, relevant), as LightGCN has it).

    Args:
        hit: bool[B, K], as `hits` returns.
        relevant: int64[B], number of relevant items, at least 1.
    """
    return hit.sum(axis=1) / relevant


def hit_rate(hit: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """HR@K per query: 1 where the list holds a relevant item at all."""
    return hit.any(axis=1).astype(np.float64)


def ndcg(hit: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """nDCG@K per query, binary gains, against the ideal list of min(K, relevant) hits.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    length = hit.shape[1]
    discount = 1 / np.log2(np.arange(2, length + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(relevant, length)]
    return hit @ discount / ideal


RANKING: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "recall": recall,
    "hr": hit_rate,
    "ndcg": ndcg,
}


def ranking_metric(name: str) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], int]:
    """The function and the K of a name such as "recall@20".

    Raises:
        ValueError: the name is not `metric@K` with a known metric and K >= 1.
    """
    metric, _, k = name.partition("@")
    if metric not in RANKING or not k.isdigit() or int(k) < 1:
        raise ValueError(
            f"unknown ranking metric {name!r}: write one of {sorted(RANKING)} as metric@K, K >= 1"
        )
    return RANKING[metric], int(k)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve.

    Raises:
        ValueError: the labels are all of one class, where the area is undefined.
    """
    labels = np.asarray(labels).ravel()
    if len(np.unique(labels)) != 2:
        raise ValueError(f"AUC needs both classes, but all {len(labels)} labels are equal")
    return float(sklearn_metrics.roc_auc_score(labels, np.asarray(scores).ravel()))


def calibration_interval(
    labels: np.ndarray, probabilities: np.ndarray, cluster: np.ndarray, bins: int = 15
) -> Interval:
    """Expected calibration error over bins of equal mass, with its interval over clusters.

    The mean over predictions of |mean prediction - share of positives| of their bin. Equal mass, since the
    rates of a feed are small and bins of equal width would put all predictions into the first. Naeini et al.,
    "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; equal mass after Nixon et
    al., "Measuring calibration in deep learning", CVPR workshops 2019. The interval takes the bins and the
    sides on which they err as found.

    Args:
        labels: 0 or 1, [N].
        probabilities: in [0, 1], [N].
        cluster: int64[N], rows with equal numbers are not independent.
        bins: number of bins; fewer where there are fewer predictions. Equal ones are in one bin.

    Raises:
        ValueError: there are no predictions, or one is outside [0, 1].
    """
    return mean_interval(calibration_gaps(labels, probabilities, bins), cluster)


def calibration_gaps(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> np.ndarray:
    """How far each prediction is from its label, positive on the side on which its bin errs: float64[N].

    Their mean is the expected calibration error; see `calibration_interval`.
    """
    labels, probabilities = _probabilities(labels, probabilities)
    gaps, of = labels - probabilities, _bins(probabilities, bins)
    return gaps * np.sign(np.bincount(of, gaps))[of]


def calibration_noise(probabilities: np.ndarray, bins: int = 15) -> float:
    """The calibration error that chance alone makes of so many true probabilities, in expectation.

    The sum of a bin's labels errs about as a normal one does, by sqrt(2 / pi) of its standard deviation.
    """
    p = np.asarray(probabilities, np.float64).ravel()
    return float(np.sqrt(2 / np.pi * np.bincount(_bins(p, bins), p * (1 - p))).sum() / len(p))


def _bins(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each prediction, int64[N], of about as many each. Equal ones are of one bin: what parts them
    would be the order in which the rows came."""
    order = np.argsort(probabilities, kind="stable")
    rank = np.arange(len(order))
    starts = np.array([part[0] for part in np.array_split(rank, min(bins, len(order)))])
    rank[order] = np.searchsorted(probabilities[order], probabilities[order])
    return np.searchsorted(starts, rank, side="right") - 1


def interval(values: np.ndarray) -> Interval:
    """The mean of independent values with its t interval; the ends are NaN for a single value.

    Raises:
        ValueError: there are no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("no values: a mean over no queries is undefined")
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half))


def clustered_interval(
    estimate: float, influence: np.ndarray, cluster: np.ndarray, confidence: float = CONFIDENCE
) -> Interval:
    """The t interval of an estimate whose rows come in clusters, such as the requests of one person.

    Args:
        estimate: the figure itself.
        influence: float64[N], how much each row moved the estimate: to first order, the estimate's error is
            their sum. For a mean over N rows that is (value - mean) / N.
        cluster: int64[N], rows with equal numbers are not independent.

    Returns:
        Ends are NaN where all rows are of one cluster.

    Raises:
        ValueError: there are no rows.
    """
    if not len(influence):
        raise ValueError("no rows: an estimate over nothing has no interval")
    sums = by_cluster(influence, cluster)
    count = len(sums)
    if count == 1:
        return Interval(float(estimate), float("nan"), float("nan"))
    half = stats.t.ppf((1 + confidence) / 2, count - 1) * np.sqrt(count / (count - 1) * np.square(sums).sum())
    return Interval(float(estimate), float(estimate - half), float(estimate + half))


def mean_interval(values: np.ndarray, cluster: np.ndarray, weights: np.ndarray | float = 1.0) -> Interval:
    """The mean of values [N] with its interval over clusters; see `clustered_interval`.

    With weights 1 / propensity it is the self-normalised inverse-propensity estimate (SNIPS; Swaminathan and
    Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015).
    """
    values = np.asarray(values, np.float64)
    weights = np.broadcast_to(np.asarray(weights, np.float64), values.shape)
    mean = float((weights * values).sum() / weights.sum()) if len(values) else float("nan")
    return clustered_interval(mean, mean_influence(values - mean, cluster, weights), cluster)


def mean_influence(deviations: np.ndarray, cluster: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much each row moved a weighted mean, float64[N]; see `clustered_interval`.

    A cluster of great weight draws the mean to itself, so its deviation hides what the others would say
    without it: it counts as what leaving it out changes (jackknife; Efron and Stein, "The jackknife estimate
    of variance", Annals of Statistics 1981).

    Args:
        deviations: of values from their weighted mean, float64[N].
        weights: float64[N].
    """
    _, place = np.unique(cluster, return_inverse=True)
    share = np.bincount(place, weights=weights) / weights.sum()
    lever = (1 - 1 / len(share)) / np.maximum(1 - share, 1e-12)
    return weights / weights.sum() * deviations * lever[place]


def by_cluster(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The sum of each cluster's values [N], float64[G], in the order of their numbers."""
    return np.bincount(np.unique(cluster, return_inverse=True)[1], weights=values)


def effective_number(weights: np.ndarray) -> float:
    """How many of equal weight say as much of a weighted mean as these, (sum w)² / sum w² (Kish, "Survey
    sampling", 1965)."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def auc_interval(labels: np.ndarray, scores: np.ndarray, cluster: np.ndarray) -> Interval:
    """AUC with its interval over clusters, without resampling; see `auc_influence`.

    Args:
        cluster: int64[N], rows with equal numbers are not independent.
    """
    return clustered_interval(*auc_influence(labels, scores), cluster)


def auc_influence(labels: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """AUC, and how much each row moved it, float64[N]; see `clustered_interval`.

    DeLong et al., "Comparing the areas under two or more correlated ROC curves", Biometrics 1988, for
    clusters as Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997.

    Args:
        labels: 0 or 1, [N].
        scores: [N].

    Raises:
        ValueError: the labels are all of one class, where the area is undefined.
    """
    labels, scores = np.asarray(labels).ravel() > 0, np.asarray(scores).ravel()
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        raise ValueError(f"AUC needs both classes, but all {len(labels)} labels are equal")
    rank = stats.rankdata(scores)
    # Of each positive, the share of negatives below it; of each negative, the share of positives above it.
    below = (rank[labels] - stats.rankdata(scores[labels])) / negatives
    above = 1 - (rank[~labels] - stats.rankdata(scores[~labels])) / positives
    area = float(below.mean())
    influence = np.empty(len(labels))
    influence[labels], influence[~labels] = (below - area) / positives, (above - area) / negatives
    return area, influence


def absolute_error_interval(truth: np.ndarray, predictions: np.ndarray, cluster: np.ndarray) -> Interval:
    """Mean absolute error, in the unit of the truth, with its interval over clusters, int64[N]; see
    `clustered_interval`."""
    errors = np.abs(np.asarray(predictions, np.float64).ravel() - np.ravel(truth))
    return mean_interval(errors, cluster)


def bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    scores: np.ndarray,
    cluster: np.ndarray,
    *,
    seed: int,
    resamples: int = 200,
) -> Interval:
    """A statistic of all queries together with its percentile bootstrap interval, over clusters.

    Args:
        statistic: of labels and scores, such as `auc`.
        labels: [Q] or [Q, C].
        scores: the same shape.
        cluster: int64[Q], queries with equal numbers, such as those of one person, are drawn together.

    Returns:
        Ends are NaN where all queries are of one cluster.
    """
    order = np.argsort(cluster, kind="stable")
    queries = np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
    rng = np.random.default_rng(seed)
    values = []
    for draw in rng.integers(0, len(queries), size=(resamples, len(queries))):
        drawn = np.concatenate([queries[place] for place in draw])
        try:
            values.append(statistic(labels[drawn], scores[drawn]))
        except ValueError:  # a draw of one class only
            continue
    if not values or len(queries) == 1:
        return Interval(statistic(labels, scores), float("nan"), float("nan"))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(statistic(labels, scores), float(low), float(high))


def _probabilities(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels, dtype=np.float64).ravel()
    probabilities = np.asarray(probabilities, dtype=np.float64).ravel()
    if not len(labels):
        raise ValueError("no labels: a metric over no predictions is undefined")
    outside = ~((probabilities >= 0) & (probabilities <= 1))
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {len(outside)} predictions are no probabilities, such as "
            f"{probabilities[outside][0]:g}: apply the sigmoid before this metric"
        )
    return labels, probabilities
