"""Raw columns of logged queries as the served query graph reads them: what a server should make, too."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def raw_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """Raw query columns as the served query graph reads them, named `raw_…`: nulls and padding are ""."""
    arrays: dict[str, np.ndarray] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            counts = column.value_lengths().to_numpy(zero_copy_only=False)
            dense = np.full((len(column), int(counts.max(initial=0))), "", object)
            dense[np.arange(dense.shape[1]) < counts[:, None]] = column.flatten().to_numpy(
                zero_copy_only=False
            )
            arrays[f"raw_{name}"] = dense
        elif pa.types.is_string(column.type):
            arrays[f"raw_{name}"] = column.fill_null("").to_numpy(zero_copy_only=False)
        elif pa.types.is_integer(column.type):
            filled = column.fill_null(np.iinfo(np.int64).min) if column.null_count else column
            arrays[f"raw_{name}"] = filled.to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            arrays[f"raw_{name}"] = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float32)
    return arrays
