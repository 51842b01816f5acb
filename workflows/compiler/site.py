"""Where an operator stands in the workflow: what its compiler may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workflows.compiler.graph import INT64, Column, Graph, Refused


@dataclass(frozen=True)
class Site:
    """An operator in its place.

    Attributes:
        graph: the ONNX graph under construction.
        op: the fitted NVTabular operator.
        selector: the columns, with their grouping, that the operator is applied to.
        read: compiles an upstream column by name.
    """

    graph: Graph
    op: Any
    selector: Any
    read: Callable[[str], Column]

    def source(self, name: str) -> str:
        """The one input column that output `name` is made from."""
        return self.op.column_mapping(self.selector)[name][0]

    def numeric(self, name: str, *, lists: bool = False) -> Column:
        """The input column of output `name`, refused where it is text or, without `lists`, a list."""
        column = self.read(self.source(name))
        if column.dtype == object:
            raise Refused("it needs numbers and the column is text")
        if column.present is not None and not lists:
            raise Refused(
                "it works on scalar columns and the column is a list; NVTabular cannot run it either"
            )
        if column.dtype == bool:
            return column.but(self.graph.cast(column.value, INT64), INT64)
        return column


#: Compiles one output column of an operator.
Compiler = Callable[[Site, str], Column]


def passed_through(site: Site, name: str) -> Column:
    """Selection, `+`, `-`, `[]`, tags, properties and recorded statistics: the column as it came."""
    return site.read(name)


def renamed(site: Site, name: str) -> Column:
    """Rename: the column under its old name."""
    return site.read(site.source(name))
