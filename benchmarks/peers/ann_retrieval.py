"""The ANN libraries' side of the retrieval benchmark: an index a market, one thread, as a stage uses them."""

from pathlib import Path

import faiss
import hnswlib
import numpy as np
from answering import serve
from usearch.index import Index

K = 100


class Libraries:
    """Vectors by market, and the index that was built last."""

    def load(self, folder):
        faiss.omp_set_num_threads(1)
        folder = Path(folder)
        self.vectors = np.load(folder / "vectors.npy")
        available = np.load(folder / "available.npy")
        self.rows = [np.flatnonzero(here) for here in available]
        self.queries = np.load(folder / "queries.npy")
        self.market = np.load(folder / "market.npy")
        self.folder = folder

    def build(self, kind, **settings):
        self.kind = kind
        self.indexes = [getattr(self, f"_{kind}")(self.vectors[rows], **settings) for rows in self.rows]

    def _flat(self, vectors):
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index

    def _faiss_hnsw(self, vectors, m, ef_construction):
        index = faiss.IndexHNSWFlat(vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = ef_construction
        faiss.omp_set_num_threads(2)
        index.add(vectors)
        faiss.omp_set_num_threads(1)
        return index

    def _faiss_ivf(self, vectors, lists):
        index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(2)
        index.train(vectors[: 64 * lists])
        index.add(vectors)
        faiss.omp_set_num_threads(1)
        return index

    def _hnswlib(self, vectors, m, ef_construction):
        index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        index.init_index(len(vectors), M=m, ef_construction=ef_construction, random_seed=1)
        index.add_items(vectors, num_threads=2)
        index.set_num_threads(1)
        return index

    def _usearch(self, vectors, m, ef_construction):
        index = Index(
            ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=m, expansion_add=ef_construction
        )
        index.add(np.arange(len(vectors)), vectors, threads=2)
        return index

    def tune(self, effort):
        """Set how hard a search tries: probes of IVF, candidates of HNSW."""
        for index in self.indexes:
            if self.kind == "faiss_ivf":
                index.nprobe = effort
            elif self.kind == "faiss_hnsw":
                index.hnsw.efSearch = effort
            elif self.kind == "hnswlib":
                index.set_ef(effort)
            elif self.kind == "usearch":
                index.expansion_search = effort

    def search(self, start, stop, batch, save=False):
        """Answer queries in batches of one market each."""
        found = np.full((stop - start, K), -1, np.int64)
        for market, rows in enumerate(self.rows):
            here = np.flatnonzero(self.market[start:stop] == market)
            for place in range(0, len(here), batch):
                part = here[place : place + batch]
                near = self._near(self.indexes[market], self.queries[start + part])
                found[part, : near.shape[1]] = np.where(near >= 0, rows[near], -1)
        if save:
            np.save(self.folder / "found.npy", found)

    def _near(self, index, queries):
        if self.kind == "hnswlib":
            return index.knn_query(queries, k=K)[0].astype(np.int64)
        if self.kind == "usearch":
            keys = index.search(queries, K, threads=1).keys
            return np.atleast_2d(keys).astype(np.int64)
        return index.search(queries, K)[1]


if __name__ == "__main__":
    libraries = Libraries()
    serve({name: getattr(libraries, name) for name in ("load", "build", "tune", "search")})
