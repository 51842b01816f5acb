"""Corrections of merlin-core 23.8 on pandas, made in this process by importing this module.

`hash_series` mixes the row number into the hash of a value, so one value falls into a different bucket in
every row; here it hashes the value alone, and of a list column its elements, as the GPU's does.

`flatten_list_column_values` and `encode_list_column` walk every element of a list column in Python; here
numpy walks the rows alone. Their results are the same.

Dask's threads share the process. A Dask worker in a process of its own must import this module too.
"""

from __future__ import annotations

import sys
from itertools import chain
from typing import Any

from . import runtime  # noqa: F401  (sets the environment before Merlin is imported)

import nvtabular  # noqa: F401  # isort: skip  (every module that holds one of the functions is loaded now)
import numpy as np
import pandas as pd
from merlin.core import dispatch

#: Element types that pandas leaves as they are.
_PLAIN = {np.dtype(name) for name in ("int32", "int64", "float32", "float64")}

_hash_series = dispatch.hash_series
_flatten = dispatch.flatten_list_column_values
_encode = dispatch.encode_list_column


def hash_series(ser: Any) -> np.ndarray:
    """Hash of every value of a pandas series, whatever its row.

    Args:
        ser: R rows. Of a list column every element is hashed.

    Returns:
        uint64[R], or uint64[E] for E elements of a list column.
    """
    if not isinstance(ser, pd.Series):
        return _hash_series(ser)
    if dispatch.is_list_dtype(ser):
        ser = flatten_list_column_values(ser)
    return pd.util.hash_pandas_object(ser, index=False).to_numpy()


def flatten_list_column_values(s: Any) -> Any:
    """The elements of a list column in one series, of the type that pandas infers for them.

    Raises:
        ValueError: a row is null instead of a list.
    """
    if not isinstance(s, pd.Series):
        return _flatten(s)
    rows = s.to_numpy()
    types = {row.dtype if isinstance(row, np.ndarray) and row.ndim == 1 else object for row in rows}
    if len(types) == 1 and types <= _PLAIN:
        elements = np.concatenate(rows)
        if elements.size:
            return pd.Series(elements)
    _refuse_nulls(s)
    return pd.Series(list(chain.from_iterable(rows)))


def encode_list_column(original: Any, encoded: Any, dtype: Any = None) -> Any:
    """A list column with the row lengths of `original` and the elements `encoded`.

    Raises:
        ValueError: a row of `original` is null instead of a list.
    """
    if not isinstance(original, pd.Series):
        return _encode(original, encoded, dtype)
    _refuse_nulls(original)
    elements = np.array(encoded, dtype=dtype)
    ends = np.fromiter(map(len, original.to_numpy()), np.int64, len(original)).cumsum().tolist()
    return pd.Series([elements[start:end] for start, end in zip([0, *ends], ends)])


def _refuse_nulls(s: pd.Series) -> None:
    null = s.isna().to_numpy()
    if null.any():
        raise ValueError(
            f"list column {s.name!r} is null in {null.sum()} of {len(s)} rows, first in row {null.argmax()}; "
            "make them empty lists"
        )


def _apply() -> None:
    """Put the functions wherever Merlin or NVTabular holds the ones they replace."""
    replaced = {
        "hash_series": (_hash_series, hash_series),
        "flatten_list_column_values": (_flatten, flatten_list_column_values),
        "encode_list_column": (_encode, encode_list_column),
    }
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("merlin", "nvtabular"):
            for attribute, (upstream, ours) in replaced.items():
                if getattr(module, attribute, None) is upstream:
                    setattr(module, attribute, ours)


_apply()
