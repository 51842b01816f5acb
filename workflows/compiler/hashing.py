"""Hashes: integers to buckets, with the hash that pandas and so NVTabular on a CPU uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from workflows.cluster import ON_GPU
from workflows.compiler.graph import INT64, Column, Graph, Refused
from workflows.compiler.site import Site

UINT64, INT32, UINT8 = np.dtype(np.uint64), np.dtype(np.int32), np.dtype(np.uint8)

#: pandas' hash of a missing value.
_NULL_HASH = 2**64 - 1
#: Every shift of the hash leaves at most this many bytes that can change.
_BYTES = 5


def hashed(site: Site, name: str) -> Column:
    """HashBucket: the hash of an integer modulo the number of buckets."""
    op, graph = site.op, site.graph
    column = site.read(name)
    if isinstance(op.num_buckets, dict) and name not in op.num_buckets:
        return column
    if column.present is not None:
        raise Refused(
            "it works on scalar columns and the column is a list; NVTabular cannot run it on pandas either"
        )
    number = op.num_buckets[name] if isinstance(op.num_buckets, dict) else op.num_buckets
    bucket = buckets(graph, column, number)
    if column.nullable:
        null = graph.constant(_NULL_HASH % number, INT64)
        bucket = graph.where(graph.is_null(column), null, bucket)
    return column.but(bucket, np.dtype(op.output_dtype))


def buckets(graph: Graph, column: Column, number: int) -> str:
    """The int64 tensor, shaped as the column, of hash(x) mod `number`; a missing value's is without meaning.

    The hash is `pandas.util.hash_array`'s of the column's own integer type: the finaliser of SplitMix64
    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

    Raises:
        Refused: the column is text or float, or NVTabular runs on cudf, which hashes otherwise.
    """
    if ON_GPU:
        raise Refused("NVTabular hashes otherwise on a GPU (Murmur3) than on a CPU; use Categorify")
    if column.dtype.kind not in "iub":
        what, why = (
            ("text", "pandas hashes text with SipHash, which no ONNX operator computes")
            if column.dtype == object
            else ("float", "pandas hashes the bits of a float, which no ONNX operator gives")
        )
        raise Refused(f"the column is {what}: {why}; use Categorify, or hash integers")

    rank = graph.rank(column)

    def mixed() -> str:
        value = column.value
        if column.dtype.kind != "b" and column.dtype.itemsize < 8:
            # pandas hashes the bits of the narrow integer.
            value = graph.cast(value, np.dtype(f"u{column.dtype.itemsize}"))
        value = graph.cast(value, UINT64)
        value = _multiply(graph, _xor_shifted(graph, value, 30, rank), 0xBF58476D1CE4E5B9)
        value = _multiply(graph, _xor_shifted(graph, value, 27, rank), 0x94D049BB133111EB)
        return _xor_shifted(graph, value, 31, rank)

    value = graph.once(("hash", column.value, column.dtype), mixed)
    return graph.cast(graph.emit("Mod", value, graph.constant(number, UINT64), dtype=UINT64), INT64)


def _multiply(graph: Graph, value: str, factor: int) -> str:
    """value * factor mod 2**64. ONNX Runtime multiplies int64 alone; the bits of the product are the same."""
    product = graph.arithmetic("Mul", graph.cast(value, INT64), np.uint64(factor).astype(np.int64))
    return graph.cast(product, UINT64)


def _xor_shifted(graph: Graph, value: str, shift: int, rank: int) -> str:
    """value ^ (value >> shift) of a tensor of `rank` dimensions, for a shift of 24 bits or more.

    Opset 17 has no XOR of integers: the low bytes, which alone can change, are looked up pair by pair.
    """
    pairs = np.bitwise_xor.outer(np.arange(256), np.arange(256)).ravel()
    left = _low_bytes(graph, value)
    right = _low_bytes(graph, _shifted(graph, value, "RIGHT", shift))
    pair = graph.arithmetic("Add", graph.arithmetic("Mul", left, 256), right)
    changed = graph.emit("Gather", graph.constant(pairs, UINT8), pair, dtype=UINT8)
    weighted = graph.arithmetic("Mul", graph.cast(changed, INT64), 256 ** np.arange(_BYTES))
    # Counted from the left: ONNX Runtime 1.23 does not reduce the last axis of no rows.
    axis = graph.constant([rank], INT64)
    low = graph.emit("ReduceSum", weighted, axis, dtype=INT64, keepdims=0)
    high = _shifted(graph, _shifted(graph, value, "RIGHT", 8 * _BYTES), "LEFT", 8 * _BYTES)
    return graph.cast(graph.emit("Add", graph.cast(high, INT64), low, dtype=INT64), UINT64)


def _low_bytes(graph: Graph, value: str) -> str:
    """The `_BYTES` lowest bytes of a uint64 tensor, on a new last axis, as int32."""
    wide = graph.emit("Unsqueeze", value, graph.constant([-1], INT64), dtype=UINT64)
    shifted = _shifted(graph, wide, "RIGHT", 8 * np.arange(_BYTES))
    return graph.cast(graph.cast(shifted, UINT8), INT32)


def _shifted(graph: Graph, value: str, direction: str, bits: Any) -> str:
    return graph.emit("BitShift", value, graph.constant(bits, UINT64), dtype=UINT64, direction=direction)
