"""Nearest neighbours under a market filter: our index a market beside faiss, hnswlib and usearch.

Every query asks for the 100 nearest of one of five markets, which hold 40, 25, 18, 12 and 5 % of the contents
and are asked in these shares. Queries come one by one, and in batches of 64 of mixed markets. All run on one
thread. Peers are used with an index a market, and with one index and a filter by market where they have one;
the effort of each is the least, by market, that finds 99 % of the queries that are timed. Ours does not see
those: its effort was found when it was built, on other queries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    BenchmarkError,
    Cost,
    Result,
    Side,
    compare,
    machine,
    peer,
    peer_python,
    table,
    timed,
    versions,
    write_report,
)
from ensemble.search import MarketIndex

Report = Callable[[str], None]

WIDTH, K, RECALL = 64, 100, 0.99
SHARES = np.array([0.40, 0.25, 0.18, 0.12, 0.05])
LEAST = 20_010
"""Vectors with which the smallest market of the smaller set has K."""
TIMED, SAMPLE = 1000, 10_000
"""Queries that are timed, and others that our index is built with."""

PEERS = {
    "faiss flat, index a market": ("Flat", False),
    "faiss IVF, index a market": ("Probing", False),
    "faiss HNSW, index a market": ("Graph", False),
    "hnswlib, index a market": ("Hnswlib", False),
    "usearch, index a market": ("Usearch", False),
    "usearch 16 bits, index a market": ("Halves", False),
    "faiss IVF fast scan, index a market": ("FastScan", False),
    "faiss flat, filter": ("Flat", True),
    "faiss IVF, filter": ("Probing", True),
    "faiss HNSW, filter": ("Graph", True),
    "hnswlib, filter": ("Hnswlib", True),
}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def tower_vectors(contents: int, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Contents and queries that lie as those of a trained two-tower do.

    Measured on the release of `pasar demo`: contents lie in a cone (their mean has a length of 0.86), most of
    their variance is in few directions (participation ratio 6 to 9), and queries lie elsewhere (their mean
    cosine with contents is -0.2, that with the nearest about 0.2). So here: contents around sellers around
    topics, with variances that fall as 1/i in rotated axes, about a common mean; queries between three
    contents, about another mean. An inverted file needs as large a share of its lists for a recall as on the
    demo's vectors (participation ratio 14, so a little harder).

    Returns:
        float32[contents, WIDTH] and float32[queries, WIDTH], of length one.
    """
    variance = 1 / np.arange(1, WIDTH + 1)
    axes = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    axes = (axes * np.sqrt(variance / variance.sum())).T.astype(np.float32)

    def draw(count: int) -> np.ndarray:
        return rng.standard_normal((count, WIDTH), np.float32) @ axes

    sellers, topics = max(contents // 50, 1), draw(32)
    seller = 0.6 * topics[rng.integers(0, len(topics), sellers)] + 0.5 * draw(sellers)
    content = seller[rng.integers(0, sellers, contents)] + 0.6 * draw(contents)
    wanted = content[rng.integers(0, contents, (queries, 3))].mean(axis=1) + 0.5 * draw(queries)
    mean = unit(rng.standard_normal((1, WIDTH)))
    return unit(content + 1.6 * mean), unit(wanted - 0.25 * mean)


def uniform_vectors(contents: int, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Contents and queries spread evenly over the sphere: the hardest case, which no trained model gives."""
    return (
        unit(rng.standard_normal((contents, WIDTH), np.float32)),
        unit(rng.standard_normal((queries, WIDTH), np.float32)),
    )


Generator = Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Data:
    """Vectors by market, queries, and the score that one of the 100 nearest has at least."""

    def __init__(self, generator: Generator, contents: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.vectors, queries = generator(contents, TIMED + SAMPLE, rng)
        self.market = rng.permutation(
            np.searchsorted(np.cumsum(SHARES), np.arange(contents) / contents, "right")
        )
        asked = rng.choice(len(SHARES), TIMED + SAMPLE, p=SHARES)
        self.queries, self.sample = queries[:TIMED], queries[TIMED:]
        self.asked, self.sample_asked = asked[:TIMED], asked[TIMED:]
        self.rows = [np.flatnonzero(self.market == market) for market in range(len(SHARES))]
        self.border = np.empty(TIMED, np.float32)
        for market, rows in enumerate(self.rows):
            here = np.flatnonzero(self.asked == market)
            for start in range(0, len(here), 128):
                part = here[start : start + 128]
                scores = self.queries[part] @ self.vectors[rows].T
                # Sums of another order may differ in the last bits.
                self.border[part] = np.partition(scores, -K, axis=1)[:, -K] - 1e-6

    def save(self, folder: Path) -> None:
        for name in ("vectors", "market", "queries", "asked", "border"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    def parts(self, batch: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Batches split by market: the market, places of its queries, the queries."""
        for start in range(0, TIMED, batch):
            asked = self.asked[start : start + batch]
            for market in np.unique(asked):
                here = start + np.flatnonzero(asked == market)
                yield int(market), here, np.ascontiguousarray(self.queries[here])

    def recall(self, found: np.ndarray, side: str) -> float:
        """Share of the 100 nearest that were found.

        Args:
            found: int64[TIMED, K], rows of `vectors`, -1 fills.

        Raises:
            ValueError: something was found twice, or in another market than the one asked.
        """
        known = found >= 0
        ordered = np.sort(found, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise ValueError(f"{side} finds a content twice")
        if (known & (self.market[found] != self.asked[:, None])).any():
            raise ValueError(f"{side} finds contents of another market than the one asked")
        scores = np.einsum("bd,bkd->bk", self.queries, self.vectors[found])
        return float((known & (scores >= self.border[:, None])).mean())


class Ours:
    """An index a market, as a release has it."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data = data
        self.indexes = []
        for market, rows in enumerate(data.rows):
            sample = data.sample[data.sample_asked == market]
            built = MarketIndex.build(data.vectors[rows], sample, k=K, recall=RECALL, seed=seed)
            # The one that serves is read from the release.
            self.indexes.append(MarketIndex.load(data.vectors[rows], built.lists(), built.tuning))

    def found(self, batch: int) -> np.ndarray:
        found = np.full((TIMED, K), -1, np.int64)
        for market, here, queries in self.data.parts(batch):
            found[here] = self.data.rows[market][self.indexes[market].search(queries, K)]
        return found

    def side(self, batch: int) -> Side:
        parts = [(self.indexes[market].search, queries) for market, _, queries in self.data.parts(batch)]

        def work() -> None:
            for search, queries in parts:
                search(queries, K)

        return timed(work)


def each(side: Side) -> Side:
    """A side that answers all queries, told for one of them."""

    def one() -> Cost:
        cost = side()
        return Cost(cost.wall / TIMED, cost.cpu / TIMED)

    return one


def case(
    name: str,
    generator: Generator,
    contents: int,
    peers: Sequence[str],
    *,
    seed: int,
    repeats: int,
    report: Report,
) -> tuple[list[Result], dict[str, float]]:
    """Every side on one set of vectors: what a query costs, and each side's recall."""
    with tempfile.TemporaryDirectory(prefix="pasar-retrieval-") as place, ExitStack() as running:
        folder = Path(place)
        data = Data(generator, contents, seed)
        data.save(folder)
        ours = Ours(data, seed)
        asked = {}
        for label in peers:
            asked[label] = running.enter_context(peer("ann_retrieval.py", peer_python("retrieval")))
            asked[label].ask("load", folder=place, k=K)
            kind, filtered = PEERS[label]
            built = asked[label].ask("build", kind=kind, filtered=filtered)
            report(f"{name}, {contents:,} vectors, {label}: built and tuned, CPU {built['cpu']:.0f} s")
        results: list[Result] = []
        recalls: dict[str, float] = {}
        for batch, how in ((1, "one by one"), (64, "batches of 64")):
            recalls["ours"] = data.recall(ours.found(batch), "ours")
            sides = {f"ours, recall {recalls['ours']:.4f}": each(ours.side(batch))}
            for label, other in asked.items():
                other.ask("split", batch=batch)
                other.ask("save")
                recalls[label] = data.recall(np.load(folder / "found.npy"), label)
                sides[f"{label}, recall {recalls[label]:.4f}"] = each(other.side("search"))
            found = compare(f"{name}, {how}", contents, sides, repeats=repeats, report=report)
            for result in found:
                rate = 1 / result.cpu.median
                report(f"{result.case}, {contents:,} vectors, {result.side}: {rate:,.0f} queries/s")
            results += found
        report(table(results))
    return results, recalls


def run(
    *,
    rows: int = 1_000_000,
    repeats: int = 5,
    seed: int = 0,
    file: Path | None = None,
    report: Report = print,
) -> list[Result]:
    """Run the benchmark, over a tenth of the vectors with all peers, then over all with an index a market.

    Args:
        rows: vectors of the larger set.
        repeats: turns of each side in each case.
        seed: of the vectors, the queries and our index.
        file: where the report goes as JSON.
        report: called with a line as each figure is known.

    Raises:
        BenchmarkError: a market would have fewer vectors than are asked for.
    """
    if rows < LEAST:
        raise BenchmarkError(
            f"--rows is {rows:,}, so a market has fewer than the {K} vectors that are asked for; "
            f"it must be at least {LEAST:,}"
        )
    before = machine()
    # One index and a filter is never faster than an index a market: shown once, at the size it suits best.
    an_index_a_market = [label for label, (_, filtered) in PEERS.items() if not filtered]
    cases = (
        ("tower", tower_vectors, rows // 10, list(PEERS)),
        ("uniform", uniform_vectors, rows // 10, an_index_a_market),
        ("tower", tower_vectors, rows, an_index_a_market),
    )
    results: list[Result] = []
    recalls = {}
    for name, generator, contents, peers in cases:
        found, recall = case(name, generator, contents, peers, seed=seed, repeats=repeats, report=report)
        results += found
        recalls[f"{name}, {contents:,} vectors"] = recall
    with peer("ann_retrieval.py", peer_python("retrieval")) as other:
        installed = other.ask("versions")["versions"]
    if file:
        settings = {"rows": rows, "repeats": repeats, "seed": seed, "k": K, "width": WIDTH}
        found_versions = {**versions("faiss-cpu", "numpy"), "peers": installed}
        write_report(file, "retrieval", settings, before, found_versions, results, recall=recalls)
    return results
