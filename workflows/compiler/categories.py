"""Categorify: categories to integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workflows.compiler import hashing
from workflows.compiler.graph import Column, Refused
from workflows.compiler.lookup import TEXT, codes, rows
from workflows.compiler.site import Site

# NVTabular's indices: 0 is padding, then null, then what is out of the vocabulary.
NULL, OOV = 1, 2
# The code, inside the graph alone, of a value that a hash will place.
_UNKNOWN = -1


def categorified(site: Site, name: str) -> Column:
    """Categorify: 0 padding, 1 null, 2 unknown, from 3 the vocabulary."""
    op, graph = site.op, site.graph
    if op.single_table:
        raise Refused(
            "single_table=True gives a null and the first category one index in NVTabular; leave it out"
        )
    columns = [site.read(source) for source in _sources(site, name)]
    combo = op.encode_type == "combo"
    storage = name if combo else op.storage_name.get(name, name)
    buckets = _buckets(op, storage, joint=storage != name)
    if buckets > 1 and (combo or storage != name):
        raise Refused("num_buckets of several columns combines their hashes; leave num_buckets out")
    names = _sources(site, name) if combo else [storage]
    keys, labels, counted = _vocabulary(op.categories[storage], names, OOV + buckets)
    other = OOV if buckets == 1 else _UNKNOWN

    if len(columns) == 1:
        known = keys.iloc[:, 0].notna().to_numpy()
        series = keys.iloc[:, 0][known]
        value = codes(graph, columns[0], series, labels[known], null=NULL, other=other, unique=counted)
        if buckets > 1:
            bucket = graph.arithmetic("Add", hashing.buckets(graph, columns[0], buckets), OOV)
            value = graph.where(graph.compare("Equal", value, _UNKNOWN), bucket, value)
    else:
        all_null = keys.isna().all(axis=1).to_numpy()
        nothing = pd.DataFrame([[None] * len(names)], columns=names, dtype=object)
        keys = pd.concat([keys[~all_null].astype(object), nothing], ignore_index=True)
        value = rows(graph, columns, keys, np.append(labels[~all_null], NULL), other=other)
    return columns[0].but(value, np.dtype(op.output_dtype))


def _sources(site: Site, name: str) -> list[str]:
    source = site.op.column_mapping(site.selector)[name]
    return list(source) if isinstance(source, (list, tuple)) else [source]


def _buckets(op: Any, storage: str, *, joint: bool) -> int:
    """How many OOV indices NVTabular uses for the vocabulary `storage` when it transforms."""
    if isinstance(op.num_buckets, dict):
        return op.num_buckets.get(storage, 1)
    return 1 if op.num_buckets is None or joint else op.num_buckets


def _vocabulary(path: str, names: list[str], first: int) -> tuple[pd.DataFrame, np.ndarray, bool]:
    """The keys and the labels that NVTabular wrote when it was fitted, and whether it counted the keys."""
    file = Path(path)
    if not file.exists():
        if file.with_name(file.name.replace("unique.", "meta.", 1)).exists():
            # NVTabular writes no vocabulary for a column that was null in every row.
            return pd.DataFrame({n: pd.Series(dtype=object) for n in names}), np.zeros(0, np.int64), True
        raise Refused(f"its vocabulary file {file.name} is gone; keep the operator's out_path, or fit again")
    table = pq.read_table(file).to_pandas(types_mapper={pa.string(): TEXT}.get)
    missing = [name for name in names if name not in table]
    if missing:
        raise Refused(
            f"its vocabulary file {file.name} has no column {missing}; give every Categorify its own out_path"
        )
    labels = np.arange(len(table)) if file.is_dir() else table.index.to_numpy()
    labels = labels.astype(np.int64)
    if labels.size and labels[0] < first:
        labels = labels + first
    counted = f"{'_'.join(names)}_size" in table
    return table[names].reset_index(drop=True), labels, counted
