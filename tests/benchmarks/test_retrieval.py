"""The retrieval benchmark refuses wrong finds, and counts right ones."""

import numpy as np
import pytest

from benchmarks.harness import BenchmarkError
from benchmarks.retrieval import LEAST, Data, K, run, tower_vectors


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(tower_vectors, 3000, 0)


@pytest.fixture(scope="module")
def nearest(data: Data) -> np.ndarray:
    scores = np.where(data.market == data.asked[:, None], data.queries @ data.vectors.T, -np.inf)
    return np.argsort(-scores, axis=1)[:, :K]


def test_the_nearest_of_the_market_are_a_recall_of_one(data: Data, nearest: np.ndarray) -> None:
    assert data.recall(nearest, "all") == 1
    assert data.recall(np.where(np.arange(K) < 80, nearest, -1), "some") == pytest.approx(0.8)


def test_finds_of_another_market_or_twice_end_the_benchmark(data: Data, nearest: np.ndarray) -> None:
    other, twice = nearest.copy(), nearest.copy()
    other[3, 7] = np.flatnonzero(data.market != data.asked[3])[0]
    twice[5, 9] = twice[5, 8]
    with pytest.raises(ValueError, match="another market"):
        data.recall(other, "a peer")
    with pytest.raises(ValueError, match="twice"):
        data.recall(twice, "a peer")


def test_the_least_rows_give_every_market_enough_and_fewer_are_refused() -> None:
    fewest = Data(tower_vectors, LEAST // 10, 0)
    assert min(map(len, fewest.rows)) == K
    with pytest.raises(BenchmarkError, match="it must be at least 20,010"):
        run(rows=LEAST - 1)
