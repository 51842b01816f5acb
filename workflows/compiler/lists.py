"""ListSlice: parts of lists."""

from __future__ import annotations

import numpy as np

from workflows.compiler.graph import Column, Refused
from workflows.compiler.site import Site

_ENDLESS = np.iinfo(np.int64).max


def sliced(site: Site, name: str) -> Column:
    """ListSlice: row[start:end], dense; with `pad`, short rows are filled up with `pad_value`."""
    op, graph = site.op, site.graph
    column = site.read(name)
    if column.present is None:
        raise Refused("it slices lists and the column is a scalar")
    if (op.start, op.end) == (0, _ENDLESS):
        return column
    width = -op.start if op.start < 0 < op.end else max(op.end - op.start, 0)
    column = graph.cut(column, op.start, op.end, width)
    return graph.filled(column, op.pad_value) if op.pad else column
