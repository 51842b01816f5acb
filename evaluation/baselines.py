"""Baselines that any learned retriever has to beat: popularity, item neighbours, EASE, graph filters.

Each has `fit(interactions)`, with a CSR matrix float32[U, I] of users by items, and `scores(users)`, which
gives float32[B, I] for rows of that matrix. All are closed forms: no epochs, no early stopping, no chance.
"""

from itertools import pairwise
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from models.item_graph import invert


class Baseline(Protocol):
    """What every class of this module does."""

    def fit(self, interactions: sp.csr_matrix) -> "Baseline": ...

    def scores(self, users: np.ndarray) -> np.ndarray: ...


class Popularity:
    """The items with most users, counted within each group (market) of users.

    Args:
        groups: int64[U], the group of each user, from 0; all in one group where None.
    """

    def __init__(self, groups: np.ndarray | None = None):
        self.groups = groups

    def fit(self, interactions: sp.csr_matrix) -> "Popularity":
        """Counts the interactions of each item per group."""
        users = interactions.shape[0]
        self.group_of = np.zeros(users, dtype=np.int64) if self.groups is None else np.asarray(self.groups)
        member = sp.csr_matrix((np.ones(users, dtype=np.float32), (self.group_of, np.arange(users))))
        self.counts = (member @ interactions).toarray().astype(np.float32)
        return self

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[B, I], the counts of the group of each user."""
        return self.counts[self.group_of[users]]


class ItemKNN:
    """Cosine similarity of items with shrinkage, each item keeping its nearest neighbours.

    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001; the shrinkage
    after Bell and Koren, "Improved neighborhood-based collaborative filtering", KDD Cup 2007.

    Args:
        neighbours: entries kept per item.
        shrinkage: added to the norm of a pair, so that two items with few users in common are not near; > 0.
        block: items compared at once.
    """

    def __init__(self, neighbours: int = 100, shrinkage: float = 100.0, block: int = 1024):
        if neighbours < 1 or shrinkage <= 0:
            raise ValueError(f"neighbours {neighbours} and shrinkage {shrinkage} must be positive")
        self.neighbours = neighbours
        self.shrinkage = shrinkage
        self.block = block

    def fit(self, interactions: sp.csr_matrix) -> "ItemKNN":
        """Computes and prunes the similarities block by block."""
        self.interactions = interactions.astype(np.float32)
        by_item = self.interactions.T.tocsr()
        items = by_item.shape[0]
        norms = np.sqrt(np.asarray(by_item.multiply(by_item).sum(axis=1)).ravel())
        near: list[sp.csr_matrix] = []
        for start in range(0, items, self.block):
            together = by_item[start : start + self.block] @ self.interactions
            item = start + np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
            together.data /= norms[item] * norms[together.indices] + self.shrinkage
            together.data[item == together.indices] = 0
            near.append(_largest(together, self.neighbours))
        # Row i holds the neighbours of item i: a user's score of i sums over those that the user has.
        self.similarity = sp.vstack(near).T.tocsr()
        return self

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[B, I], the similarity of each item to those of its neighbours that the user has, summed."""
        return (self.interactions[users] @ self.similarity).toarray()


class EASE:
    """A linear autoencoder over items with a zero diagonal, in closed form.

    Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019. The inverse takes time cubic and
    memory quadratic in the number of items: 12,000 items take 1.2 GB (float64) and about a minute on two
    cores. A larger catalogue is refused, unless `most_popular` restricts the model to a part of it; the
    other items then score 0.

    Args:
        regularisation: added to the diagonal of the Gram matrix; the more interactions per item, the more.
        most_popular: items in the model; all where None.
        max_items: largest model that is inverted.
        dtype: float64, or float32 for half the memory.
    """

    def __init__(
        self,
        regularisation: float,
        *,
        most_popular: int | None = None,
        max_items: int = 12_000,
        dtype: type = np.float64,
    ):
        if regularisation <= 0:
            raise ValueError(
                f"regularisation must be positive, got {regularisation}: the inverse may not exist"
            )
        self.regularisation = regularisation
        self.most_popular = most_popular
        self.max_items = max_items
        self.dtype = dtype

    def fit(self, interactions: sp.csr_matrix) -> "EASE":
        """Inverts the regularised Gram matrix of the items.

        Raises:
            ValueError: the model would have more than `max_items` items.
        """
        count = np.asarray(interactions.sum(axis=0)).ravel()
        kept = min(self.most_popular or len(count), len(count))
        if kept > self.max_items:
            raise ValueError(
                f"EASE over {kept:,} items would invert a {kept:,} x {kept:,} matrix "
                f"({kept * kept * np.dtype(self.dtype).itemsize / 1e9:.1f} GB); the limit is "
                f"{self.max_items:,}: pass most_popular={self.max_items} to model the most popular items "
                f"alone, or raise max_items"
            )
        self.items = np.sort(np.argsort(-count, kind="stable")[:kept])
        self.catalogue = len(count)
        self.interactions = interactions.tocsc()[:, self.items].tocsr().astype(np.float32)
        gram = (self.interactions.T @ self.interactions).toarray().astype(self.dtype)
        gram[np.diag_indices(kept)] += self.regularisation
        inverse = invert(gram)
        weights = inverse / -np.diag(inverse)[None, :]
        weights[np.diag_indices(kept)] = 0
        self.weights = weights.astype(np.float32)
        return self

    def knowing(self, interactions: sp.csr_matrix) -> None:
        """Let scores start from these interactions of the users; the model stays as it was fitted."""
        self.interactions = interactions.tocsc()[:, self.items].tocsr().astype(np.float32)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[B, I]; items outside the model score 0."""
        modelled = self.interactions[users] @ self.weights
        if len(self.items) == self.catalogue:
            return modelled
        result = np.zeros((len(users), self.catalogue), dtype=np.float32)
        result[:, self.items] = modelled
        return result


class GraphFilter:
    """GF-CF: a linear filter and an ideal low-pass filter over the graph of items.

    Shen et al., "How powerful is graph convolution for recommendation?", CIKM 2021.

    Args:
        rank: singular vectors of the low-pass filter, 256 in the paper.
        alpha: weight of the low-pass filter, 0.3 in the paper; 0 leaves the linear filter alone.
        seed: of the start vector of the truncated decomposition.
    """

    def __init__(self, rank: int = 256, alpha: float = 0.3, seed: int = 0):
        self.rank = rank
        self.alpha = alpha
        self.seed = seed

    def fit(self, interactions: sp.csr_matrix) -> "GraphFilter":
        """Normalises the interactions by the degrees of both sides and decomposes them.

        Of one user, one item or no interactions there is nothing to decompose: the linear filter is left.
        """
        self.interactions = interactions.astype(np.float32)
        degree_user = np.asarray(self.interactions.sum(axis=1)).ravel()
        degree_item = np.asarray(self.interactions.sum(axis=0)).ravel()
        normalised = (
            sp.diags(_power(degree_user, -0.5)) @ self.interactions @ sp.diags(_power(degree_item, -0.5))
        )
        self.normalised = normalised.tocsr().astype(np.float32)
        self.by_item = self.normalised.T.tocsr()
        vectors = np.zeros((0, self.normalised.shape[1]), dtype=np.float32)
        rank = min(self.rank, min(self.normalised.shape) - 1)
        if rank >= 1 and self.normalised.nnz:
            start = np.random.default_rng(self.seed).normal(size=min(self.normalised.shape))
            # Its many small products keep a second thread waiting for the first most of the time.
            with threadpool_limits(1, "blas"):
                vectors = svds(
                    self.normalised, k=rank, v0=start.astype(np.float32), return_singular_vectors="vh"
                )[2]
        # By row in memory: of a reversed or a turned view a product makes a copy, for each block of users.
        self.inward = np.ascontiguousarray((vectors * _power(degree_item, -0.5)).T, dtype=np.float32)
        self.outward = np.ascontiguousarray(vectors * (self.alpha * _power(degree_item, 0.5)), np.float32)
        return self

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[B, I]."""
        history = self.interactions[users]
        scores = (history @ self.inward) @ self.outward
        scores += (self.by_item @ (self.normalised @ history.T).toarray()).T
        return scores


class Blended:
    """A baseline's scores plus a little of the logarithm of each item's popularity.

    Args:
        baseline: what is added to.
        popularity: per market.
        weight: of log(1 + users of the item), in the unit of the baseline's scores.
    """

    def __init__(self, baseline: Baseline, popularity: Popularity, weight: float):
        self.baseline = baseline
        self.popularity = popularity
        self.weight = weight

    def fit(self, interactions: sp.csr_matrix) -> "Blended":
        """Fits both parts."""
        self.baseline.fit(interactions)
        self.popularity.fit(interactions)
        return self

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[B, I]."""
        popular = np.log1p(self.popularity.scores(users))
        return (self.baseline.scores(users) + self.weight * popular).astype(np.float32)


def _largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The largest positive entries of each row, at most `count`; of equal ones any."""
    for start, end in pairwise(matrix.indptr):
        if end - start > count:
            row = matrix.data[start:end]
            row[np.argpartition(-row, count)[count:]] = 0
    matrix.eliminate_zeros()
    return matrix


def _power(values: np.ndarray, exponent: float) -> np.ndarray:
    """values ** exponent, 0 where the value is 0."""
    result = np.zeros(len(values), dtype=np.float32)
    np.power(values, exponent, out=result, where=values > 0, casting="unsafe")
    return result
