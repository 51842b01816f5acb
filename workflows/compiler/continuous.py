"""Numbers to numbers: fill, clip, log, normalise, bucketise, narrow."""

from __future__ import annotations

from typing import Any

import numpy as np

from workflows.compiler.graph import BOOL, FLOAT32, FLOAT64, INT64, STRING, Column, Graph, Refused
from workflows.compiler.site import Site


def filled(site: Site, name: str) -> Column:
    """FillMissing: a constant for a missing value, and `<column>_filled` where it was asked for."""
    return _filled(site, name, site.op.fill_val)


def filled_with_median(site: Site, name: str) -> Column:
    """FillMedian: the fitted median for a missing value."""
    return _filled(site, name, site.op.medians[site.source(name)])


def _filled(site: Site, name: str, fill: Any) -> Column:
    source, graph = site.source(name), site.graph
    column = site.read(source)
    if column.present is not None:
        raise Refused(
            "it fills scalar columns and the column is a list; NVTabular leaves null elements as they are"
        )
    if name != source:
        return column.but(graph.is_null(column), BOOL)
    if column.dtype == STRING:
        if not isinstance(fill, str):
            raise Refused(f"the column is text and the fill value {fill!r} is not; set fill_val to a string")
        return column.but(graph.where(graph.is_null(column), graph.constant(fill, STRING), column.value))
    if column.dtype == BOOL or (column.dtype.kind in "iu" and not column.nullable):
        return column
    column = _wide_enough(graph, column, fill)
    constant = graph.constant(fill, column.dtype if column.dtype.kind == "f" else INT64)
    return column.but(graph.where(graph.is_null(column), constant, column.value))


def clipped(site: Site, name: str) -> Column:
    """Clip: values below or above a bound become the bound; a missing value stays missing."""
    column, graph = site.numeric(name), site.graph
    for bound, beyond in ((site.op.min_value, "Less"), (site.op.max_value, "Greater")):
        if bound is None:
            continue
        column = _wide_enough(graph, column, bound)
        outside = graph.compare(beyond, column.value, bound)
        if beyond == "Less" and column.dtype.kind in "iu" and column.nullable:
            valued = graph.emit("Not", graph.is_null(column), dtype=BOOL)
            outside = graph.emit("And", outside, valued, dtype=BOOL)
        constant = graph.constant(bound, column.dtype if column.dtype.kind == "f" else INT64)
        column = column.but(graph.where(outside, constant, column.value), nullable=column.nullable)
    return column


def _wide_enough(graph: Graph, column: Column, number: float) -> Column:
    """The column as float64 where it is integer and the number that will be written into it is not."""
    if column.dtype.kind == "f" or float(number).is_integer():
        return column
    return column.but(graph.to_float(column, FLOAT64), FLOAT64)


def logged(site: Site, name: str) -> Column:
    """LogOp: log(1 + x) in float32."""
    column, graph = site.numeric(name, lists=True), site.graph
    value = graph.arithmetic("Add", graph.to_float(column, FLOAT32), 1)
    return column.but(graph.emit("Log", value, dtype=FLOAT32), FLOAT32)


def normalized(site: Site, name: str) -> Column:
    """Normalize: (x - mean) / std, or x - mean where the column did not vary."""
    column, graph = site.numeric(name, lists=True), site.graph
    value = graph.to_float(column, _float_dtype(column))
    value = graph.arithmetic("Sub", value, site.op.means[name])
    if site.op.stds[name] > 0:
        value = graph.arithmetic("Div", value, site.op.stds[name])
    return _as_declared(site, column, value)


def normalized_to_range(site: Site, name: str) -> Column:
    """NormalizeMinMax: (x - min) / (max - min), or x / (2 x) where the column did not vary."""
    column, graph = site.numeric(name), site.graph
    low, high = site.op.mins[name], site.op.maxs[name]
    dtype = _float_dtype(column)
    value = graph.to_float(column, dtype)
    if high > low:
        value = graph.arithmetic("Div", graph.arithmetic("Sub", value, low), high - low)
    elif high == low:
        value = graph.emit("Div", value, graph.arithmetic("Mul", value, 2), dtype=dtype)
    else:
        raise Refused("the column was null in every fitted row, so it has no range; drop it or fill it first")
    return _as_declared(site, column, value)


def bucketized(site: Site, name: str) -> Column:
    """Bucketize: np.digitize, the number of boundaries at or below x; a missing value is above them all."""
    column, graph = site.numeric(name), site.graph
    bounds = np.asarray(site.op.boundaries(name))
    np.digitize(0.0, bounds)  # ValueError for boundaries out of order, as the Workflow itself would raise
    whole = column.dtype.kind in "iu" and bounds.dtype.kind in "iu"
    value = column.value if whole else graph.to_float(column, FLOAT64)
    value = graph.cast(value, INT64 if whole else FLOAT64)
    wide = graph.emit("Unsqueeze", value, graph.constant([-1], INT64), dtype=INT64 if whole else FLOAT64)
    below = graph.compare("Less", wide, bounds)
    if whole and column.nullable:
        # NaN is below nothing; nor may the integer that stands for a missing value be.
        valued = graph.emit("Not", graph.is_null(column), dtype=BOOL)
        valued = graph.emit("Unsqueeze", valued, graph.constant([-1], INT64), dtype=BOOL)
        below = graph.emit("And", below, valued, dtype=BOOL)
    # Axis 1, not -1: ONNX Runtime 1.23 does not reduce the last axis of no rows.
    count = graph.emit(
        "ReduceSum", graph.cast(below, INT64), graph.constant([1], INT64), dtype=INT64, keepdims=0
    )
    if not (bounds.size > 1 and bounds[0] > bounds[-1]):
        count = graph.emit("Sub", graph.constant(bounds.size, INT64), count, dtype=INT64)
    return column.but(count, np.dtype(np.int32))


def narrowed(site: Site, name: str) -> Column:
    """ReduceDtypeSize: floats as float32, integers as the smallest type that held the fitted values."""
    column = site.read(name)
    dtype = site.op.dtypes[name].to_numpy
    if column.dtype.kind == "f":
        return column.but(site.graph.cast(column.value, dtype), dtype)
    return column.but(column.value, dtype, nullable=column.nullable)


def _float_dtype(column: Column) -> np.dtype:
    """The dtype that pandas computes in: float32 stays, integers become float64."""
    return column.dtype if column.dtype.kind == "f" else FLOAT64


def _as_declared(site: Site, column: Column, value: str) -> Column:
    dtype = np.dtype(site.op.output_dtype)
    if dtype.kind != "f":
        raise Refused(f"out_dtype={dtype} cuts its fractions off; use float32 or float64")
    return column.but(site.graph.cast(value, dtype), dtype)
