"""The ANN libraries' side of the retrieval benchmark: an index a market, or one index with a market filter.

Each runs on one thread, as a stage of a server does, and is built on all cores. Graphs take minutes of CPU
time, so they are kept, by what they were built of, beside the peers' environments.
"""

import hashlib
import os
from copy import copy
from importlib import metadata
from pathlib import Path
from typing import Any

# Threads that wait for each other would take the time of those that work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import faiss
import hnswlib
import numpy as np
from answering import serve
from usearch.index import Index

LINKS, LOOK = 16, 200  # of HNSW: neighbours of a node, candidates when one is added
MOST_PROBES, MOST_LOOK = 1024, 4000
GRAPHS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pasar-peers" / "graphs"


class Flat:
    """faiss, exact."""

    efforts = (1,)

    def __init__(self, vectors):
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)
        self.params = None

    def among(self, bits):
        """The same index for a search among the vectors of these bits alone."""
        view = copy(self)
        view.params = self.filter(sel=faiss.IDSelectorBitmap(bits))
        return view

    filter = faiss.SearchParameters

    def tune(self, effort):
        """Set how hard a search tries."""

    def search(self, queries, k):
        return self.index.search(queries, k, params=self.params)[1]


class Probing(Flat):
    """faiss, inverted lists; effort is the lists that are scanned."""

    filter = faiss.SearchParametersIVF

    def __init__(self, vectors, form="Flat", per_list=3.0):
        lists = 2 ** round(np.log2(per_list * np.sqrt(len(vectors))))
        self.index = faiss.index_factory(vectors.shape[1], f"IVF{lists},{form}", faiss.METRIC_INNER_PRODUCT)
        self.lists = faiss.extract_index_ivf(self.index)
        self.index.train(vectors)
        self.index.add(vectors)
        self.params = None
        self.efforts = _grid(1, min(lists, MOST_PROBES))

    def tune(self, effort):
        (self.params or self.lists).nprobe = effort


class FastScan(Probing):
    """faiss, inverted lists of 4-bit codes and candidates scored anew: what ours is made of."""

    def __init__(self, vectors):
        super().__init__(vectors, f"PQ{vectors.shape[1]}x4fsr,RFlat", per_list=1.2)
        self.index.k_factor = 2


class Graph(Flat):
    """faiss, HNSW; effort is the candidates that a search keeps."""

    filter = faiss.SearchParametersHNSW

    def __init__(self, vectors):
        def make(file):
            index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = LOOK
            index.add(vectors)
            faiss.write_index(index, file)

        self.index = faiss.read_index(_kept("faiss-cpu", "f32", vectors, make))
        self.params = None
        self.efforts = _grid(100, MOST_LOOK)

    def tune(self, effort):
        (self.params or self.index.hnsw).efSearch = effort


class Hnswlib:
    """hnswlib, compiled for this processor; a filter is a function of the vector's number."""

    def __init__(self, vectors):
        def make(file):
            index = hnswlib.Index(space="ip", dim=vectors.shape[1])
            index.init_index(len(vectors), M=LINKS, ef_construction=LOOK, random_seed=1)
            index.add_items(vectors)
            index.save_index(file)

        self.index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self.index.load_index(_kept("hnswlib", "f32", vectors, make))
        self.index.set_num_threads(1)
        self.efforts = _grid(100, MOST_LOOK)
        self.allowed = None

    def among(self, bits):
        view = copy(self)
        view.allowed = np.unpackbits(bits, bitorder="little").astype(bool).tolist().__getitem__
        return view

    def tune(self, effort):
        self.effort = effort

    def search(self, queries, k):
        self.index.set_ef(self.effort)
        return self.index.knn_query(queries, k=k, filter=self.allowed)[0].astype(np.int64)


class Usearch:
    """usearch; its Python has no filter, so it is used with an index a market alone."""

    def __init__(self, vectors, dtype="f32"):
        def make(file):
            index = Index(
                ndim=vectors.shape[1], metric="ip", dtype=dtype, connectivity=LINKS, expansion_add=LOOK
            )
            index.add(np.arange(len(vectors)), vectors)
            index.save(file)

        self.index = Index.restore(_kept("usearch", dtype, vectors, make))
        self.efforts = _grid(100, MOST_LOOK)

    def tune(self, effort):
        self.index.expansion_search = effort

    def search(self, queries, k):
        return np.atleast_2d(self.index.search(queries, k, threads=1).keys).astype(np.int64)


class Halves(Usearch):
    """usearch, vectors kept as 16-bit floats."""

    def __init__(self, vectors):
        super().__init__(vectors, dtype="f16")


KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Flat, Probing, FastScan, Graph, Hnswlib, Usearch, Halves)
}


class Searching:
    """The vectors and queries of a folder, and what was built of them."""

    def load(self, folder, k):
        self.folder, self.k = Path(folder), k
        names = "vectors", "market", "queries", "asked", "border"
        self.vectors, self.market, self.queries, self.asked, self.border = (
            np.load(self.folder / f"{name}.npy") for name in names
        )

    def build(self, kind, filtered):
        """One index for each market; or one of everything, which every market searches with a filter."""
        own = [np.flatnonzero(self.market == market) for market in range(int(self.market.max()) + 1)]
        if filtered:
            whole = KINDS[kind](self.vectors)
            bits = [np.packbits(self.market == market, bitorder="little") for market in range(len(own))]
            self.indexes = [whole.among(one) for one in bits]
            self.rows = [np.arange(len(self.vectors))] * len(own)
        else:
            self.indexes = [KINDS[kind](self.vectors[rows]) for rows in own]
            self.rows = own
        faiss.omp_set_num_threads(1)
        return {"efforts": [self._tune(market) for market in range(len(own))]}

    def _tune(self, market):
        """Take the least effort that finds 99 % on the queries that are timed, or the greatest."""
        index = self.indexes[market]
        here = np.flatnonzero(self.asked == market)
        queries, border = self.queries[here], self.border[here]
        least, most = 0, len(index.efforts) - 1
        while least < most:
            middle = (least + most) // 2
            index.tune(index.efforts[middle])
            rows = self.rows[market][index.search(queries, self.k)]
            scores = np.einsum("bd,bkd->bk", queries, self.vectors[rows])
            if (scores >= border[:, None]).mean() >= 0.99:
                most = middle
            else:
                least = middle + 1
        index.tune(index.efforts[most])
        return index.efforts[most]

    def split(self, batch):
        """Split the queries into batches, and these by market, as a server would have them."""
        self.parts = [
            (int(market), here, np.ascontiguousarray(self.queries[here]))
            for start in range(0, len(self.queries), batch)
            for market, here in _by_market(self.asked[start : start + batch], start)
        ]

    def search(self):
        """Answer all queries."""
        for market, _, queries in self.parts:
            self.indexes[market].search(queries, self.k)

    def save(self):
        """Answer all queries and write down what was found."""
        found = np.full((len(self.queries), self.k), -1, np.int64)
        for market, here, queries in self.parts:
            places = self.indexes[market].search(queries, self.k)
            found[here] = np.where(places >= 0, self.rows[market][places], -1)
        np.save(self.folder / "found.npy", found)

    def versions(self):
        return {"versions": {name: metadata.version(name) for name in ("faiss-cpu", "hnswlib", "usearch")}}


def _kept(package, dtype, vectors, make):
    """The file of a graph of these vectors, from an earlier run or made now by `make(file)`."""
    about = f"{package} {metadata.version(package)} {dtype} {LINKS} {LOOK} {vectors.shape}"
    key = hashlib.sha256(about.encode() + vectors.tobytes()).hexdigest()[:16]
    file = GRAPHS / f"{package}-{key}"
    if not file.exists():
        GRAPHS.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        make(str(part))
        part.rename(file)
    return str(file)


def _grid(least, most):
    """Efforts to choose from, 6 % apart."""
    return np.unique(np.geomspace(least, most, int(np.log(most / least) / 0.06) + 2).astype(int)).tolist()


def _by_market(asked, start):
    return [(market, start + np.flatnonzero(asked == market)) for market in np.unique(asked)]


if __name__ == "__main__":
    searching = Searching()
    names = "load", "build", "split", "search", "save", "versions"
    serve({name: getattr(searching, name) for name in names})
