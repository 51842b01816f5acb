"""What no few edges of an item graph hold: the part of BSPM's filter beyond co-visitation, as two tables.

BSPM (Choi et al., "Blurring-sharpening process models for collaborative filtering", SIGIR 2023) blurs what
a user wanted by the linear filter P of GF-CF and by an ideal low-pass, the space of P's first eigenvectors V,
and sharpens the sum: (P + β D^-½ V Vᵀ D^½) f(P), D being the contents' degrees and f(λ) one Runge-Kutta step
of the way back. P is the normalised co-visitation that the item graph keeps the largest entries of. The rest
is dense, but of low rank but for P (f(P) - κ) outside of V; there P is small, f hardly changes, and κ is its
value at the mean that weighs each eigenvalue by itself.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from market.item_graph import LowRank
from workflows.examples import TRAIN, Examples

from .item_graph import ItemGraphConfig, training_events

LOW_PASS, TIME = 0.2, 2.5
"""Weight β of the ideal low-pass and time of the sharpening, both as published for gowalla."""


def fit_low_rank(examples: Examples, config: ItemGraphConfig, last: int = TRAIN) -> LowRank:
    """The filter's rest for all markets' positives in the parts up to `last`; without a dimension where
    `ItemGraphConfig.low_rank` is 0, or there is nothing to decompose."""
    rank = min(config.low_rank, len(examples.users) - 1, len(examples.contents) - 1)
    if rank < 1:
        return LowRank.none(len(examples.contents))
    matrix = training_events(examples, config.events, last).matrix
    source, target = filter_rest(matrix, rank)
    return LowRank(source, target, config.recency if examples.has_time else 0.0)


def filter_rest(matrix: sp.csr_matrix, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """BSPM's filter of a log float32[U, N] over κ, without P: `source @ target.T`, float32[N, rank] each."""
    of_user, of_content = (np.maximum(matrix.getnnz(axis), 1).astype(np.float32) for axis in (1, 0))
    normalised = (sp.diags(of_user**-0.5) @ matrix @ sp.diags(of_content**-0.5)).tocsr()
    back = normalised.T.tocsr()
    _, singular, vectors = randomized_svd(normalised, rank, n_iter=4, random_state=0)
    eigen, vectors = singular.astype(np.float64) ** 2, np.ascontiguousarray(vectors.T)
    kappa = sharpened(_mean_beyond(normalised, back, eigen))
    # f(P) applied to the degrees' roots times V, from the innermost factor of f outwards.
    root = np.sqrt(of_content)[:, None]
    blurred = root * vectors
    made = blurred
    for order in (4, 3, 2, 1):
        made = blurred - TIME / order * (back @ (normalised @ made))
    inner = eigen * (sharpened(eigen) / kappa - 1)
    left = np.hstack([vectors * inner, vectors / root * (LOW_PASS / kappa)]).astype(np.float32)
    right = np.hstack([vectors, made]).astype(np.float32)
    return compressed(left, right, rank)


def sharpened(eigen: np.ndarray | float) -> np.ndarray | float:
    """f(λ): one Runge-Kutta step of dx/dt = -P x over `TIME`."""
    step = np.multiply(eigen, TIME)
    return 1 - step * (1 - step / 2 * (1 - step / 3 * (1 - step / 4)))


def _mean_beyond(normalised: sp.csr_matrix, back: sp.csr_matrix, eigen: np.ndarray) -> float:
    """Of P's eigenvalues but the first ones, the mean that weighs each by itself; 0 where they are all."""
    total = float((normalised.data.astype(np.float64) ** 2).sum())
    beyond = total - float(eigen.sum())
    if beyond <= 1e-4 * total:  # what rounding leaves
        return 0.0
    squares = float(((back @ normalised).data.astype(np.float64) ** 2).sum())
    return max(squares - float((eigen**2).sum()), 0.0) / beyond


def compressed(left: np.ndarray, right: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The product `left @ right.T` of float32[N, K] each, at the closest of a lower rank.

    N is large and K is not, so their singular vectors come from the products of their own columns.
    """
    (turn, size), (back, back_size) = _columns(left), _columns(right)
    inner, value, outer = np.linalg.svd(size[:, None] * (turn.T @ back) * back_size)
    of_left = turn @ (_inverse(size)[:, None] * inner[:, :rank] * value[:rank])
    of_right = back @ (_inverse(back_size)[:, None] * outer[:rank].T)
    return left @ of_left.astype(left.dtype), right @ of_right.astype(right.dtype)


def _columns(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right singular vectors and singular values of a table, float64[K, K] and float64[K]."""
    squares, turn = np.linalg.eigh((table.T @ table).astype(np.float64))
    return turn, np.sqrt(np.maximum(squares, 0))


def _inverse(size: np.ndarray) -> np.ndarray:
    """1 / size; 0 where rounding alone may have left something."""
    known = size > 1e-3 * size.max(initial=0)
    return np.where(known, 1 / np.where(known, size, 1), 0)
