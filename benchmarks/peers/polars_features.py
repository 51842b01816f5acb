"""Polars' side of the feature benchmark: the same features, by the expressions that were the fastest."""

from pathlib import Path

import numpy as np
import polars as pl
from answering import serve

LAST = 20


def _number(name):
    return pl.col(name).fill_null(0).clip(0, 1000).log1p()


def _encoded(values, vocabulary):
    return values.replace_strict(vocabulary["key"], vocabulary["id"], default=2, return_dtype=pl.Int64)


class Polars:
    """One table, what was fitted on it, and what was made of it last."""

    def load(self, path):
        self.frame = pl.read_parquet(path)
        self.kinds = {
            kind: [name for name in self.frame.columns if name.startswith(kind)]
            for kind in ("category", "number", "history", "scores")
        }

    def fit(self):
        """Vocabularies in the order of falling frequency, means and deviations."""
        frame = self.frame.lazy()
        keys = {name: frame.select(key=name) for name in self.kinds["category"]}
        keys |= {
            name: frame.select(key=pl.col(name).list.tail(LAST).explode()) for name in self.kinds["history"]
        }
        counted = [
            column.drop_nulls()
            .group_by("key")
            .len("count")
            .sort("count", descending=True)
            .select("key", "count", id=pl.int_range(3, pl.len() + 3, dtype=pl.Int64))
            for column in keys.values()
        ]
        self.vocabularies = dict(zip(keys, pl.collect_all(counted)))
        numbers = {name: _number(name) for name in self.kinds["number"]}
        numbers |= {name: pl.col(name).explode().log1p() for name in self.kinds["scores"]}
        moments = [
            self.frame.select(mean=values.mean(), std=values.std()).row(0) for values in numbers.values()
        ]
        self.moments = dict(zip(numbers, moments))

    def transform(self, rows):
        def scaled(name, values):
            mean, std = self.moments[name]
            return ((values - mean) / std).cast(pl.Float32)

        columns = [
            pl.when(pl.col(name).is_null())
            .then(1)
            .otherwise(_encoded(pl.col(name), self.vocabularies[name]))
            .alias(name)
            for name in self.kinds["category"]
        ]
        columns += [scaled(name, _number(name)).alias(name) for name in self.kinds["number"]]
        columns += [
            pl.col(name).list.tail(LAST).list.eval(_encoded(pl.element(), self.vocabularies[name]))
            for name in self.kinds["history"]
        ]
        columns += [
            pl.col(name).list.eval(scaled(name, pl.element().log1p())) for name in self.kinds["scores"]
        ]
        self.encoded = self.frame.head(rows).select(columns)

    def save(self, folder):
        """Each output as .npy: scalars as they are, lists flat beside their lengths."""
        for column in self.encoded:
            if column.dtype == pl.List:
                np.save(Path(folder, f"{column.name}.lengths.npy"), column.list.len().to_numpy())
                column = column.explode(empty_as_null=False)
            np.save(Path(folder, f"{column.name}.npy"), column.to_numpy())

    def versions(self):
        return {"versions": {"polars": pl.__version__, "threads": pl.thread_pool_size()}}


if __name__ == "__main__":
    side = Polars()
    serve({name: getattr(side, name) for name in ("load", "fit", "transform", "save", "versions")})
