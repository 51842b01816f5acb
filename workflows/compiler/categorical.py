"""Categorify and HashBucket: categories to integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflows.compiler.graph import INT64, STRING, UINT64, Column, Graph, Refused
from workflows.compiler.lookup import codes, rows
from workflows.compiler.site import Site

# NVTabular's indices: 0 is padding, then null, then what is out of the vocabulary.
NULL, OOV = 1, 2

# pandas.core.util.hashing mixes integers with these (the finaliser of splitmix64).
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))
_BYTES = np.arange(8, dtype=np.uint64) * 8


def categorified(site: Site, name: str) -> Column:
    """Categorify: 0 padding, 1 null, from 2 unknown (one index or hash buckets), then the vocabulary."""
    op, graph = site.op, site.graph
    if op.single_table:
        raise Refused(
            "single_table=True gives a null and the first category one index in NVTabular; leave it out"
        )
    columns = [site.read(source) for source in _sources(site, name)]
    combo = op.encode_type == "combo"
    storage = name if combo else op.storage_name.get(name, name)
    buckets = _buckets(op, storage, joint=storage != name)
    names = _sources(site, name) if combo else [storage]
    keys, labels = _vocabulary(op.categories[storage], names, OOV + buckets)

    if len(columns) == 1:
        known = keys.iloc[:, 0].notna().to_numpy()
        series = keys.iloc[:, 0][known]
        other = -1 if buckets > 1 else OOV
        value = codes(graph, columns[0], series, labels[known], null=NULL, other=other)
    else:
        if buckets > 1:
            raise Refused("num_buckets cannot be combined with encode_type='combo'; use one OOV index")
        all_null = keys.isna().all(axis=1).to_numpy()
        nothing = pd.DataFrame([[None] * len(names)], columns=names, dtype=object)
        keys = pd.concat([keys[~all_null].astype(object), nothing], ignore_index=True)
        value = rows(graph, columns, keys, np.append(labels[~all_null], NULL), other=OOV)
    if buckets > 1:
        bucket = graph.arithmetic("Add", _bucket(graph, columns[0], buckets), OOV)
        value = graph.where(graph.compare("Less", value, 0), bucket, value)
    return columns[0].but(value, np.dtype(op.output_dtype))


def hashed(site: Site, name: str) -> Column:
    """HashBucket: pandas' hash of an integer, modulo the number of buckets; int32."""
    column = site.read(name)
    buckets = site.op.num_buckets
    if isinstance(buckets, dict):
        if name not in buckets:
            return column
        buckets = buckets[name]
    return column.but(_bucket(site.graph, column, buckets), np.dtype(np.int32))


def _sources(site: Site, name: str) -> list[str]:
    source = site.op.column_mapping(site.selector)[name]
    return list(source) if isinstance(source, (list, tuple)) else [source]


def _buckets(op: Any, storage: str, *, joint: bool) -> int:
    """How many OOV indices NVTabular uses for the vocabulary `storage` when it transforms."""
    if isinstance(op.num_buckets, dict):
        return op.num_buckets.get(storage, 1)
    return 1 if op.num_buckets is None or joint else op.num_buckets


def _vocabulary(path: str, names: list[str], first: int) -> tuple[pd.DataFrame, np.ndarray]:
    """The keys and the labels that NVTabular wrote when it was fitted."""
    file = Path(path)
    if not file.exists():
        if file.with_name(file.name.replace("unique.", "meta.", 1)).exists():
            # NVTabular writes no vocabulary for a column that was null in every row.
            return pd.DataFrame({name: pd.Series(dtype=object) for name in names}), np.zeros(0, np.int64)
        raise Refused(f"its vocabulary file {file.name} is gone; keep the operator's out_path, or fit again")
    table = pd.read_parquet(file)
    missing = [name for name in names if name not in table]
    if missing:
        raise Refused(
            f"its vocabulary file {file.name} has no column {missing}; give every Categorify its own out_path"
        )
    labels = np.arange(len(table)) if file.is_dir() else table.index.to_numpy()
    labels = labels.astype(np.int64)
    if labels.size and labels[0] < first:
        labels = labels + first
    return table[names].reset_index(drop=True), labels


def _bucket(graph: Graph, column: Column, buckets: int) -> str:
    """pandas' hash of an integer column, modulo `buckets`, as int64."""
    if column.present is not None:
        raise Refused("NVTabular cannot hash lists on a CPU; use Categorify without num_buckets")
    if column.dtype == STRING:
        raise Refused(
            "ONNX cannot read the bytes of a string, so NVTabular cannot be followed in hashing text; "
            "use Categorify with one OOV index, or hash the text to an integer before the workflow"
        )
    if column.dtype.kind == "f":
        raise Refused(
            "ONNX cannot read the bits of a float, so NVTabular cannot be followed in hashing floats; "
            "cast the column to integers and replace its nulls before the workflow"
        )
    # A narrow integer is hashed as its own bits, filled up with zeros.
    bits = np.dtype(f"u{column.dtype.itemsize}")
    value = graph.cast(graph.cast(column.value, bits), UINT64)
    for shift, factor in _MIX:
        value = _xor(graph, value, _shifted(graph, value, shift))
        if factor is not None:
            value = graph.arithmetic("Mul", value, factor)
    return graph.cast(graph.arithmetic("Mod", value, buckets), INT64)


def _shifted(graph: Graph, value: str, bits: int | np.ndarray) -> str:
    return graph.emit("BitShift", value, graph.constant(bits, UINT64), dtype=UINT64, direction="RIGHT")


def _xor(graph: Graph, left: str, right: str) -> str:
    """left ^ right. ONNX has no such operator before opset 18: look up one byte at a time."""
    byte = np.arange(256)
    table = graph.constant(byte[:, None] ^ byte, np.dtype(np.uint8))
    left, right = (_bytes(graph, value) for value in (left, right))
    pair = graph.emit("Concat", left, right, dtype=INT64, axis=-1)
    found = graph.cast(graph.emit("GatherND", table, pair, dtype=np.dtype(np.uint8)), UINT64)
    return graph.emit("MatMul", found, graph.constant(np.uint64(1) << _BYTES, UINT64), dtype=UINT64)


def _bytes(graph: Graph, value: str) -> str:
    """The eight bytes of each uint64, least first, as int64[..., 8, 1]."""
    last = graph.constant([-1], INT64)
    wide = graph.emit("Unsqueeze", value, last, dtype=UINT64)
    byte = graph.cast(graph.cast(_shifted(graph, wide, _BYTES), np.dtype(np.uint8)), INT64)
    return graph.emit("Unsqueeze", byte, last, dtype=INT64)
