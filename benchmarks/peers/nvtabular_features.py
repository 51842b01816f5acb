"""NVTabular's side of the feature benchmark, and the workflows of both sides.

Run as a script it is NVTabular as installed; with `patched` as its argument, with workflows/patches.py.
"""

import sys
import warnings
from pathlib import Path

import workflows.runtime  # isort: skip  (before NVTabular)

import numpy as np
import nvtabular as nvt
import pandas as pd
from merlin.io import Dataset
from nvtabular import ops

#: The last elements of a history that a feature keeps.
LAST = 20


def workflow(columns, stats):
    """What the benchmark computes: names tell what a column is (see benchmarks/features.py).

    Args:
        columns: category_*, number_*, history_* and scores_*.
        stats: folder for the vocabularies.
    """
    kinds = {
        kind: [name for name in columns if name.startswith(kind)]
        for kind in ("category", "number", "history", "scores")
    }
    node = kinds["category"] >> ops.Categorify(out_path=f"{stats}/category")
    node += (
        kinds["number"]
        >> ops.FillMissing(0)
        >> ops.Clip(min_value=0, max_value=1000)
        >> ops.LogOp()
        >> ops.Normalize(out_dtype=np.float32)
    )
    if kinds["history"]:
        node += kinds["history"] >> ops.ListSlice(-LAST) >> ops.Categorify(out_path=f"{stats}/history")
    if kinds["scores"]:
        node += kinds["scores"] >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32)
    return nvt.Workflow(node)


class NVTabular:
    """One table, a workflow fitted on it, and what the workflow made of it last."""

    def load(self, path, stats):
        self.frame = pd.read_parquet(path)
        self.stats = stats

    def fit(self):
        self.workflow = workflow(self.frame.columns, self.stats).fit(Dataset(self.frame))

    def transform(self, rows, calls=1):
        part = self.frame.iloc[:rows]
        for _ in range(calls):
            self.encoded = self.workflow.transform(part)

    def save(self, folder):
        """Each output as .npy: scalars as they are, lists flat beside their lengths."""
        for name, column in self.encoded.items():
            values = column.to_numpy()
            if values.dtype == object:
                np.save(Path(folder, f"{name}.lengths.npy"), np.array([len(row) for row in values]))
                values = np.concatenate(values)
            np.save(Path(folder, f"{name}.npy"), values)


if __name__ == "__main__":
    from answering import serve

    warnings.filterwarnings("ignore")
    if sys.argv[1:] == ["patched"]:
        import workflows.patches  # noqa: F401
    side = NVTabular()
    serve({"load": side.load, "fit": side.fit, "transform": side.transform, "save": side.save})
