"""List columns: which elements are there, and slices of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from workflows.compiler.elements import ElementGraph
from workflows.compiler.graph import (
    BOOL,
    INT64,
    NULL_INTEGER,
    STRING,
    Column,
    Graph,
    Refused,
    tensor_dtype,
    zero,
)
from workflows.compiler.site import Site

_ENDLESS = np.iinfo(np.int64).max


def present(graph: Graph, column: Column) -> str:
    """The bool[batch, width] tensor that is true up to the last element that is not null."""
    if isinstance(graph, ElementGraph):
        return column.value  # all are there, so nobody asks
    valued = graph.emit("Not", graph.is_null(column), dtype=BOOL)
    axis = graph.constant(1, INT64)
    later = graph.emit("CumSum", graph.cast(valued, INT64), axis, dtype=INT64, reverse=1)
    return graph.cast(later, BOOL)


def sliced(site: Site, name: str) -> Column:
    """ListSlice: row[start:end], dense; with `pad`, short rows are filled up with `pad_value`."""
    op, graph = site.op, site.graph
    column = site.read(name)
    if column.present is None:
        raise Refused("it slices lists and the column is a scalar")
    if (op.start, op.end) == (0, _ENDLESS):
        return column
    width = -op.start if op.start < 0 < op.end else max(op.end - op.start, 0)
    column = cut(graph, column, op.start, op.end, width)
    if not op.pad:
        return column
    if isinstance(graph, ElementGraph):
        raise Refused("what fills rows up is no element")
    filled = graph.where(column.present or "", column.value, _padding(graph, column, op.pad_value))
    everywhere = graph.emit("Or", column.present or "", graph.constant(True, BOOL), dtype=BOOL)
    return Column(filled, column.dtype, everywhere, width, column.nullable)


def cut(graph: Graph, column: Column, start: int, end: int, width: int) -> Column:
    """row[start:end] of every row, as [batch, width]."""
    if isinstance(graph, ElementGraph):
        graph.slices.append((start, end))
        return replace(column, length=width)
    ones = graph.cast(column.present or "", INT64)
    length = graph.emit("ReduceSum", ones, graph.constant([1], INT64), dtype=INT64, keepdims=1)
    first, last = _position(graph, length, start), _position(graph, length, end)
    index = graph.arithmetic("Add", first, np.arange(width)[None, :])
    inside = graph.compare("Less", index, last)
    # Element 0 is a null put before the row, so that there is one even in a row without elements.
    null = "" if column.dtype == STRING else NULL_INTEGER if column.dtype.kind in "iu" else 0
    dtype = tensor_dtype(column.dtype)
    shape = graph.emit("Shape", length, dtype=INT64)
    nulls = graph.emit("Expand", graph.constant(null, dtype), shape, dtype=dtype)
    padded = graph.emit("Concat", nulls, column.value, dtype=dtype, axis=1)
    place = graph.where(inside, graph.arithmetic("Add", index, 1), graph.constant(0, INT64))
    value = graph.emit("GatherElements", padded, place, dtype=dtype, axis=1)
    return Column(value, column.dtype, inside, width, column.nullable)


def padded_with_zeros(graph: Graph, column: Column) -> str:
    """The list's tensor with zeros (or empty strings) where there is no element."""
    if isinstance(graph, ElementGraph):
        return column.value
    return graph.where(column.present or "", column.value, _padding(graph, column, zero(column.dtype)))


def _position(graph: Graph, length: str, at: int) -> str:
    """Python's slice position as int64[batch, 1]: from the right where negative, never outside the row."""
    if at >= 0:
        return graph.emit("Min", length, graph.constant(min(at, _ENDLESS), INT64), dtype=INT64)
    from_right = graph.arithmetic("Add", length, at)
    return graph.emit("Max", from_right, graph.constant(0, INT64), dtype=INT64)


def _padding(graph: Graph, column: Column, value: Any) -> str:
    if (column.dtype == STRING) != isinstance(value, str):
        raise Refused(f"pad_value {value!r} is not of the column's type")
    return graph.constant(value, tensor_dtype(column.dtype))
