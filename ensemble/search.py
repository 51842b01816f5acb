"""The nearest contents of one market: exact where it is small, approximate with a checked recall where not.

A market has an index of its own, so the market filter costs nothing. A large one is an inverted file of 4-bit
codes, one for each dimension of the residual, scanned in registers (André et al., "Quicker ADC", PAMI 2021),
and the best candidates of the scan are scored anew from the vectors themselves. How many lists are scanned
is found when the index is built: the least that reaches the recall asked for on real queries.

Every score is the inner product of one query with one content, computed the same way whatever the size of the
batch, so a batch of queries gets what each query gets alone, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import faiss
import numpy as np

from ensemble.channels import NONE, nearest
from ensemble.release import Release, ReleaseError, ReleaseWriter
from market.machine import cores

FILE = "search.json"

#: To find eligible contents and to score each by itself costs as much as so many side by side.
SCATTERED = 3
#: Markets of at most so many contents are searched exactly: there it is as fast.
EXACT_UP_TO = 8_000
#: Fewer queries than this are no evidence of a recall; the market is searched exactly.
LEAST_QUERIES = 100
#: Queries that a recall is measured with.
MOST_QUERIES = 4_000
#: Those of them that settle how many lists there are and how many candidates are scored anew.
FIRST_QUERIES = 1_000
#: An index has no fewer lists.
FEWEST_LISTS = 8
#: Candidates of the scan that are scored anew, as multiples of the results asked for.
REFINE = (1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0)
#: Scoring a candidate anew, going to a list and looking at its centre cost as much as scanning so many codes.
REFINE_COST, LIST_COST, CENTRE_COST = 50, 100, 6
#: Scans of faiss with a reservoir of the best: a query's lists from the nearest on, or each list once for all
#: queries that look into it.
_QUERY_BY_QUERY, _LIST_BY_LIST = 11, 13
#: List by list is quicker where so many queries look into a list, and a query scans more codes than a cache
#: holds.
_QUERIES_A_LIST, _CODES_A_QUERY = 1.5, 12_000
_CODES_AT_ONCE = 32
#: Places of so many are marked at once (bytes).
_MARKS = 2**25
#: `madvise`: put what lies here into a huge page now. Linux 6.1 and later.
_COLLAPSE, _HUGE_PAGE = 25, 2**21

# With BLAS the last bits of a score, and so the choice of lists, would depend on the size of the batch.
faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
# The lists to scan are found in a reservoir, which is quicker than a heap from a few dozen on.
faiss.cvar.distance_compute_min_k_reservoir = 16


@dataclass(frozen=True)
class Tuning:
    """How an approximate index searches, and what it reached when it was built.

    Attributes:
        k: results asked for; a search for more is exact.
        probes: lists scanned for a query.
        refine: candidates scored anew, as multiples of the results asked for.
        recall: share of the `k` exactly nearest that were found, mean of the queries it was tuned with.
    """

    k: int
    probes: int
    refine: float
    recall: float


class _Scan:
    """Inverted lists of codes, of which a query scans so many."""

    def __init__(self, lists: faiss.IndexIVFPQFastScan, probes: int) -> None:
        lists.nprobe = probes
        lists.implem = _QUERY_BY_QUERY
        self.lists = lists
        self._share = probes / lists.nlist
        self._long = self._share * lists.ntotal >= _CODES_A_QUERY

    def __call__(self, rows: int, queries: object, count: int, rough: object, places: object) -> None:
        """What `lists.search` does, without its checks of arrays that are made here; all but numbers are
        addresses."""
        if self._long:
            # Both find the same, so threads that search side by side may change it at any time.
            together = rows * self._share >= _QUERIES_A_LIST
            self.lists.implem = _LIST_BY_LIST if together else _QUERY_BY_QUERY
        self.lists.search_c(rows, queries, count, rough, places)

    def serialized(self) -> np.ndarray:
        """uint8[bytes]."""
        self.lists.implem = _QUERY_BY_QUERY  # the last search's otherwise
        return faiss.serialize_index(self.lists)


def _proposed(scan: _Scan, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    """The best of a scan by its own scores: places int64[b, count], -1 for what equals the last and where
    there are fewer; the scores float32[b, count]; addresses of the queries float32[b, D] and of both."""
    rows = len(queries)
    places, scores = np.empty((rows, count), np.int64), np.empty((rows, count), np.float32)
    asked, found, made = map(faiss.swig_ptr, (queries, places, scores))
    scan(rows, asked, count, made, found)
    # Which of those that equal the last are kept depends on the order of the scan, not so of better ones.
    np.copyto(places, -1, where=scores == scores[:, -1:])
    return places, scores, (asked, found, made)


class MarketIndex:
    """The contents of one market, by place: 0..n-1 in the order of `vectors`.

    Attributes:
        vectors: float32[n, D], read-only; a copy of those that the index was made of.
        tuning: how the approximate search goes; None where every search is exact.
    """

    def __init__(
        self, vectors: np.ndarray, scan: faiss.IndexIVFPQFastScan | None, tuning: Tuning | None
    ) -> None:
        # A copy of numpy's lies in huge pages, which faiss's own memory does not: candidates are scored anew
        # in a quarter of the time, since each lies in another page.
        self.vectors = np.array(vectors, np.float32, order="C")
        self.vectors.flags.writeable = False
        self._pointer = faiss.swig_ptr(self.vectors)
        self.tuning = tuning
        self._scan = None
        if scan is not None and tuning is not None:
            self._scan = _Scan(scan, tuning.probes)
            _into_huge_pages(scan)

    @classmethod
    def build(
        cls, vectors: np.ndarray, queries: np.ndarray, *, k: int, recall: float = 0.99, seed: int = 0
    ) -> MarketIndex:
        """Index the contents of a market.

        Args:
            vectors: float32[n, D].
            queries: float32[q, D], a sample of those that will be asked; at most `MOST_QUERIES` of them,
                drawn at random, are used. Contents are no substitute: queries lie elsewhere.
            k: the most results that a search will ask for.
            recall: share of the `k` exactly nearest that a search has to find; the mean over the sample has
                to lie above it by two standard errors. An index that cannot reach it searches exactly.
            seed: of the lists, the codes and the draw of queries; the same seed gives the same index.

        Raises:
            ValueError: a vector or query is not finite, or their sizes differ.
        """
        if vectors.ndim != 2 or queries.ndim != 2 or vectors.shape[1] != queries.shape[1]:
            raise ValueError(
                f"vectors {vectors.shape} and queries {queries.shape} must be matrices of equal width"
            )
        for name, values in (("vectors", vectors), ("queries", queries)):
            if not np.isfinite(values).all():
                raise ValueError(f"the {name} of a market are not all finite; train the two-tower again")
        exact = cls(vectors, None, None)
        if len(vectors) <= EXACT_UP_TO or len(queries) < LEAST_QUERIES:
            return exact
        pick = np.random.default_rng(seed).permutation(len(queries))[:MOST_QUERIES]
        queries = np.ascontiguousarray(queries[np.sort(pick)], np.float32)
        sample = _Sample.of(exact, queries, min(k, len(exact)), recall)
        first = sample.first(FIRST_QUERIES)
        tried: list[tuple[faiss.IndexIVFPQFastScan, Tuning]] = []
        price = np.inf
        lists = 2 ** round(np.log2(1.2 * np.sqrt(len(vectors))))
        # The less clustered the vectors are, the more lists have to be scanned, and the fewer pay.
        while lists >= FEWEST_LISTS:
            scan = _filled(exact.vectors, lists, queries, seed)
            tuning, cost = _tune(scan, first)
            if tuning is None or cost >= price:
                break
            tried.append((scan, tuning))
            price, lists = cost, lists // 2
        for scan, tuning in reversed(tried):
            settled = tuning if len(queries) <= FIRST_QUERIES else _settle(scan, sample, tuning)
            if settled:
                return cls(vectors, scan, settled)
        return exact

    @classmethod
    def load(cls, vectors: np.ndarray, lists: np.ndarray, tuning: Tuning | None) -> MarketIndex:
        """The index that `lists` was saved from.

        Args:
            vectors: float32[n, D], the contents it was built of.
            lists: uint8[bytes], what `lists` gave.
            tuning: the index's.

        Raises:
            ValueError: `lists` is not an index of these vectors.
        """
        if tuning is None:
            return cls(vectors, None, None)
        try:
            scan = faiss.deserialize_index(np.asarray(lists))
        except RuntimeError as error:
            raise ValueError(f"the lists of a market cannot be read: {error}") from error
        if not isinstance(scan, faiss.IndexIVFPQFastScan) or (scan.ntotal, scan.d) != vectors.shape:
            raise ValueError(
                f"the lists of a market are a {type(scan).__name__} of {scan.ntotal} x {scan.d}, but it has "
                f"vectors of {vectors.shape[0]} x {vectors.shape[1]}; build the release again"
            )
        return cls(vectors, scan, tuning)

    def lists(self) -> np.ndarray:
        """What `load` needs beside the vectors: uint8[bytes], empty where every search is exact."""
        if self._scan is None:
            return np.empty(0, np.uint8)
        return self._scan.serialized()

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The nearest contents of each query, approximately where the index is tuned for `k`.

        Args:
            queries: float32[b, D].
            k: results wanted.

        Returns:
            places int64[b, min(k, n)], those of the highest inner products, best first, equal ones by place.
        """
        if self.tuning is None or k > self.tuning.k:
            return self.exact(queries, k)
        assert self._scan is not None
        k = min(k, len(self))
        places = self._scanned(self._scan, queries, k, self.tuning.refine)
        if min(places[:, -1].tolist(), default=0) < 0:  # the lists scanned hold fewer than k
            few = np.flatnonzero(places[:, -1] < 0)
            places[few] = self.exact(queries[few], k)
        return places

    def exact(self, queries: np.ndarray, k: int, eligible: np.ndarray | None = None) -> np.ndarray:
        """The nearest contents of each query, among all or among its eligible ones.

        Args:
            queries: float32[b, D].
            k: results wanted.
            eligible: bool[b, n]; None for all.

        Returns:
            places int64[b, min(k, n)], best first, equal ones by place; where fewer are eligible, -1 fills
            the end.
        """
        if eligible is None:
            return nearest(self.scores(queries), k)
        found = np.full((len(queries), min(k, len(self))), NONE)
        few = eligible.sum(axis=1) * SCATTERED < len(self)
        if not few.all():
            scores = np.where(eligible[~few], self.scores(queries[~few]), np.float32(-np.inf))
            found[~few] = nearest(scores, k)
        for row in np.flatnonzero(few).tolist():
            places = np.flatnonzero(eligible[row])
            own = nearest(self.products(queries[row : row + 1], places[None]), k)[0]
            found[row, : len(own)] = places[own]
        return found

    def _scanned(self, scan: _Scan, queries: np.ndarray, k: int, refine: float) -> np.ndarray:
        """The best of the scan by scores made anew: places int64[b, k], best first.

        Of equal ones the lower place is first; -1 fills the end where the lists scanned hold fewer. As
        `faiss.IndexRefine`, but the candidates of a query are sorted once instead of going through two heaps.
        A scan leaves nothing of Python's in the caches, so every call counts: addresses are asked for once.
        """
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, np.float32)
        places, scores, (asked, found, made) = _proposed(scan, queries, min(int(k * refine), len(self)))
        faiss.fvec_inner_products_by_idx(made, asked, self._pointer, found, queries.shape[1], *places.shape)
        # Complex numbers are sorted by their real parts and, where these are equal, by the others.
        pairs = np.empty(places.shape, np.complex128)
        pairs.real, pairs.imag = -scores, places
        pairs.sort(axis=1)
        return pairs.imag[:, :k].astype(np.int64)

    def products(self, queries: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Inner products of each query float32[b, D] with its contents at places int64[b, c]; -inf at -1."""
        # Of so little work a second thread would cost more than it does.
        faiss.omp_set_num_threads(1)
        made = np.empty(places.shape, np.float32)
        queries, places = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(places, np.int64)
        width, (asked, wanted, score) = self.vectors.shape[1], map(faiss.swig_ptr, (queries, places, made))
        faiss.fvec_inner_products_by_idx(score, asked, self._pointer, wanted, width, *places.shape)
        return made

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Inner products of queries float32[b, D] with all contents, float32[b, n]."""
        made = np.empty((len(queries), len(self)), np.float32)
        vectors, (contents, width) = self._pointer, self.vectors.shape
        for query, row in zip(np.ascontiguousarray(queries, np.float32), made):
            # One query a call: each product is summed the same way in every batch.
            faiss.fvec_inner_products_ny(faiss.swig_ptr(row), faiss.swig_ptr(query), vectors, width, contents)
        return made


def write_indexes(release: ReleaseWriter, indexes: Sequence[MarketIndex]) -> None:
    """Write the indexes of all markets, in their order, into a release that has `content_vectors.npy`."""
    release.json(FILE, [index.tuning and asdict(index.tuning) for index in indexes])
    for market, index in enumerate(indexes):
        if index.tuning:
            release.array(f"search_{market}.npy", index.lists())


def read_index(release: Release, market: int, vectors: np.ndarray) -> MarketIndex:
    """The index of a market from a release.

    Args:
        market: place in the plan's markets.
        vectors: float32[n, D], those of the market's contents.

    Raises:
        ReleaseError: the release has no index of these vectors.
    """
    tuning = release.json(FILE)[market]
    if tuning is None:
        return MarketIndex(vectors, None, None)
    try:
        return MarketIndex.load(vectors, release.array(f"search_{market}.npy"), Tuning(**tuning))
    except ValueError as error:
        raise ReleaseError(f"search_{market}.npy of release '{release.name}': {error}") from error


def _filled(vectors: np.ndarray, lists: int, queries: np.ndarray, seed: int) -> faiss.IndexIVFPQFastScan:
    """Lists of codes of all vectors, with centres and levels learned from them."""
    width = vectors.shape[1]
    scan = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(width), width, lists, width, 4, faiss.METRIC_INNER_PRODUCT, _CODES_AT_ONCE
    )
    scan.by_residual = True
    scan.cp.seed = scan.pq.cp.seed = seed
    faiss.omp_set_num_threads(1)  # what is learned shall not depend on the machine's cores
    scan.train(vectors)
    # A scan list by list goes by their numbers. The sooner it meets the best, the fewer others it keeps, so
    # those nearest to all queries come first.
    centres = scan.quantizer.reconstruct_n(0, lists)
    order = np.argsort(-(centres @ queries.mean(axis=0)), kind="stable")
    scan.quantizer.reset()
    scan.quantizer.add(centres[order])
    scan.add(vectors)
    return scan


def _into_huge_pages(scan: faiss.IndexIVFPQFastScan) -> None:
    """Move the lists into huge pages where the system can: a scan of many short lists waits for page tables.

    What cannot be moved stays as it is, and a system without the call is left alone.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return
    pages: set[int] = set()
    lists = scan.invlists
    for number in range(scan.nlist):
        length = lists.list_size(number)
        if length:
            for start, size in ((lists.get_codes(number), scan.code_size), (lists.get_ids(number), 8)):
                first = int(start)
                pages.update(range(first // _HUGE_PAGE, (first + length * size - 1) // _HUGE_PAGE + 1))
    for page in pages:
        madvise(ctypes.c_void_p(page * _HUGE_PAGE), ctypes.c_size_t(_HUGE_PAGE), _COLLAPSE)


@dataclass(frozen=True)
class _Sample:
    """Queries float32[q, D], the places int64[q, k] of the exactly nearest of each, and the share of these
    that a search has to find."""

    queries: np.ndarray
    truth: np.ndarray
    recall: float

    @classmethod
    def of(cls, exact: MarketIndex, queries: np.ndarray, k: int, recall: float) -> _Sample:
        """The sample of these queries."""
        # A block at a time: the scores of all queries and contents at once would not fit.
        blocks = np.array_split(queries, -(-len(queries) // 32))
        with ThreadPoolExecutor(cores()) as pool:
            found = list(pool.map(lambda block: exact.exact(block, k), blocks))
        return cls(queries, np.concatenate(found), recall)

    def first(self, count: int) -> _Sample:
        """The first so many queries."""
        return replace(self, queries=self.queries[:count], truth=self.truth[:count])


def _list_cost(scan: faiss.IndexIVFPQFastScan) -> float:
    """What scanning a list costs, in codes; half of its last block is empty."""
    return scan.ntotal / scan.nlist + _CODES_AT_ONCE / 2 + LIST_COST


def _tune(scan: faiss.IndexIVFPQFastScan, sample: _Sample) -> tuple[Tuning | None, float]:
    """The cheapest search that reaches a sample's recall, None where no scan of all codes does; its cost."""
    k, lists = sample.truth.shape[1], int(scan.nlist)
    best, price = None, np.inf
    for refine in sorted(REFINE, reverse=True):
        fixed = CENTRE_COST * lists + REFINE_COST * refine * k
        # Fewer candidates need no fewer lists, and more lists than this cost more than the best.
        most = int(min((price - fixed) / _list_cost(scan), lists))
        found = _fewest(scan, sample, refine, best.probes if best else 1, most)
        if found:
            best, price = found, found.probes * _list_cost(scan) + fixed
        if best is None:
            break
    return best, price


def _settle(scan: faiss.IndexIVFPQFastScan, sample: _Sample, tuning: Tuning) -> Tuning | None:
    """What `_tune` found with fewer queries, with the lists that reach this sample's recall; None where no
    number of lists does."""
    lists = int(scan.nlist)
    near = _fewest(scan, sample, tuning.refine, tuning.probes // 2 + 1, min(2 * tuning.probes, lists))
    return near or _fewest(scan, sample, tuning.refine, 1, lists)


def _fewest(
    scan: faiss.IndexIVFPQFastScan,
    sample: _Sample,
    refine: float,
    least: int,
    most: int,
) -> Tuning | None:
    """The fewest lists from `least` to `most` that reach a sample's recall; None where `most` do not."""
    k, found = sample.truth.shape[1], None
    count = min(int(k * refine), scan.ntotal)
    faiss.omp_set_num_threads(cores())
    probes = least  # which mostly do, where they did for more candidates
    while least <= most:
        # What is nearest of all is first when the candidates are scored anew, so being among them is enough.
        hits = shares(_proposed(_Scan(scan, probes), sample.queries, count)[0], sample.truth)
        if hits.mean() - 2 * hits.std() / np.sqrt(len(hits)) >= sample.recall:
            found, most = Tuning(k, probes, refine, float(hits.mean())), probes - 1
        else:
            least = probes + 1
        probes = (least + most) // 2
    return found


def shares(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of each row of `truth` int64[b, k] that the same row of `found` int64[b, j] holds, where -1 is
    nothing: float64[b]."""
    made = np.empty(len(truth))
    last = max(int(truth.max(initial=0)), int(found.max(initial=0))) + 1
    for rows in np.array_split(np.arange(len(truth)), -(-len(truth) * last // _MARKS)):
        each, held = np.arange(len(rows))[:, None], np.zeros((len(rows), last + 1), bool)
        held[each, found[rows]] = True  # -1 marks the last column, of no place
        made[rows] = held[each, truth[rows]].mean(axis=1)
    return made
