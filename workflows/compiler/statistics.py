"""TargetEncoding and JoinGroupby: fitted statistics looked up by the keys of a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from workflows.compiler.graph import INT64, NULL_INTEGER, Column, Refused
from workflows.compiler.lookup import rows
from workflows.compiler.site import Site

# JoinGroupby casts these; the others keep the dtype of the fitted table.
_STATISTIC_DTYPES = {"count": np.int32, "std": np.float32, "var": np.float32, "mean": np.float32}


def target_encoded(site: Site, name: str) -> Column:
    """TargetEncoding: (sum + p_smooth * mean) / (count + p_smooth) over all fitted rows.

    The folds are for the data that the operator was fitted on. NVTabular 23.8 also deals them, by row
    position, to new data; its documentation promises the statistics of all rows, and that is what this gives.
    """
    op = site.op
    if op.out_col is not None:
        raise Refused("out_col gives columns that NVTabular's own schema does not know; use Rename")
    group, target = next(
        (group, target)
        for group in _groups(site)
        for target in op.target_columns
        if name == f"TE_{op.name_sep.join(group)}_{target}"
    )
    tag = op.name_sep.join(group)
    table = _table(op.stats, tag)
    mean = op.means[target]
    # Written as NVTabular writes it, so that pandas rounds alike.
    total = table[_required(table, f"{tag}{op.name_sep}{target}{op.name_sep}sum")] + op.p_smooth * mean
    encoded = total / (table[_required(table, f"{tag}{op.name_sep}count")] + op.p_smooth)
    dtype = np.dtype(op.output_dtype)
    return _joined(site, group, table, encoded.fillna(mean).to_numpy().astype(dtype), dtype.type(mean))


def joined_by_group(site: Site, name: str) -> Column:
    """JoinGroupby: the statistics of the row's group; for an unknown group count 0, the others missing."""
    op = site.op
    group = next(group for group in _groups(site) if name in _statistics(site, group))
    tag = op.name_sep.join(group)
    table = _table(op.categories, tag)
    values = table[_required(table, name)].to_numpy()
    statistic = next((s for s in _STATISTIC_DTYPES if name.endswith(f"{op.name_sep}{s}")), None)
    if statistic:
        values = values.astype(_STATISTIC_DTYPES[statistic])
    missing = np.nan if values.dtype.kind == "f" else 0 if statistic == "count" else NULL_INTEGER
    return _joined(site, group, table, values, missing)


def _groups(site: Site) -> list[list[str]]:
    return [[group] if isinstance(group, str) else list(group) for group in site.selector.grouped_names]


def _statistics(site: Site, group: list[str]) -> set[str]:
    tag = site.op.name_sep.join(group)
    conts = site.op.cont_names.names
    return {f"{tag}_count"} | {f"{tag}_{cont}_{stat}" for cont in conts for stat in site.op.stats}


def _table(files: dict[str, str], tag: str) -> pd.DataFrame:
    path = Path(files[tag])
    if not path.exists():
        raise Refused(f"its statistics {path.name} are gone; keep the operator's out_path, or fit again")
    return pd.read_parquet(path)


def _required(table: pd.DataFrame, column: str) -> str:
    if column not in table:
        raise Refused(
            f"its fitted statistics have no {column!r}: another operator wrote over them, or name_sep "
            "is not '_'; give every TargetEncoding and JoinGroupby an out_path of its own and keep name_sep"
        )
    return column


def _joined(site: Site, group: list[str], table: pd.DataFrame, values: np.ndarray, missing: float) -> Column:
    """Look `values` up by the group's keys; `missing` for keys that were not fitted."""
    graph = site.graph
    columns = [site.read(name) for name in group]

    def find() -> str:
        return rows(graph, columns, table[group], np.arange(len(table)), other=len(table))

    row = graph.once((id(site.op), *group), find)
    integer = values.dtype.kind in "iu"
    tensor = INT64 if integer else values.dtype
    statistics = np.append(values.astype(tensor), np.array([missing], tensor))
    value = graph.emit("Gather", graph.constant(statistics, tensor), row, dtype=tensor)
    return Column(value, values.dtype, nullable=missing == NULL_INTEGER)
