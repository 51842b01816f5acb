"""Feature engineering: the compiled workflow against NVTabular and Polars.

A wide table has 26 categories, three of them with a vocabulary as large as the table but at most a million,
and 13 numbers. A table with lists has 12 categories, 4 numbers, 3 histories of ids and one list of scores.
Ids are 63-bit integers or their 16 hexadecimal digits as text. All sides compute the same: Categorify;
FillMissing, Clip, LogOp and Normalize of numbers; the last 20 of a history, encoded; LogOp and Normalize of
scores. Before anything is timed, their outputs are compared.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import nvtabular_features as defined  # isort: skip  (sets the environment first)

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import (
    Peer,
    Result,
    compare,
    machine,
    peer,
    peer_python,
    timed,
    versions,
    write_report,
)
from workflows.bulk import BulkTransform
from workflows.compile import compile_workflow
from workflows.fit import fit

MILLION = 1_000_000
Report = Callable[[str], None]


def keys(rng: np.random.Generator, picks: np.ndarray, size: int, *, text: bool) -> pa.Array:
    """Ids for the picks 0..size-1: 63-bit integers, or their 16 hexadecimal digits."""
    ids = np.unique(rng.integers(0, 2**63 - 1, 2 * size))[: 2 * size]
    ids = rng.permutation(ids)[:size]
    if not text:
        return pa.array(ids[picks])
    return pa.array([f"{key:016x}" for key in ids.tolist()]).take(pa.array(picks))


def skewed(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Picks from 0..size-1, the low ones much more often."""
    return np.minimum(rng.pareto(0.8, count), size - 1).astype(np.int64)


def numbers(rng: np.random.Generator, rows: int) -> pa.Array:
    """Positive float32 with a long tail, 2 % missing."""
    return pa.array(rng.lognormal(0, 2, rows).astype(np.float32), mask=rng.random(rows) < 0.02)


def wide_table(rows: int, *, text: bool, seed: int) -> pa.Table:
    """26 categories and 13 numbers; the first three categories have as many keys as rows, up to a million."""
    rng = np.random.default_rng(seed)
    columns = {}
    for number, size in enumerate(
        [min(rows, MILLION)] * 3 + np.geomspace(4, 100_000, 23).astype(int).tolist()
    ):
        picks = rng.permutation(rows) % size if number < 3 else skewed(rng, rows, size)
        columns[f"category_{number:02}"] = keys(rng, picks, size, text=text)
    for number in range(13):
        columns[f"number_{number:02}"] = numbers(rng, rows)
    return pa.table(columns)


def list_table(rows: int, *, seed: int) -> pa.Table:
    """12 categories, 4 numbers, 3 histories and a list of scores, of 10 elements on average, some empty."""
    rng = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    for number, size in enumerate(np.geomspace(4, 100_000, 12).astype(int).tolist()):
        columns[f"category_{number:02}"] = keys(rng, skewed(rng, rows, size), size, text=False)
    for number in range(4):
        columns[f"number_{number:02}"] = numbers(rng, rows)
    for name in ("history_0", "history_1", "history_2", "scores_0"):
        lengths = np.minimum(rng.geometric(1 / 11, rows) - 1, 50)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        flat = (
            pa.array(rng.lognormal(0, 1, offsets[-1]).astype(np.float32))
            if name.startswith("scores")
            else keys(rng, skewed(rng, offsets[-1], 50_000), 50_000, text=False)
        )
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return pa.table(columns)


def check(ours: dict[str, np.ndarray], folder: Path, side: str) -> None:
    """Compare our outputs with those that a peer saved.

    Ids of keys that are equally frequent are each side's own choice: they have to correspond one to one, and
    to fall in frequency.

    Raises:
        ValueError: an output differs.
    """
    for name, values in ours.items():
        theirs = np.load(folder / f"{name}.npy")
        if values.ndim == 2:
            lengths = np.load(folder / f"{name}.lengths.npy")
            inside = np.arange(values.shape[1]) < lengths[:, None]
            if values[~inside].any():
                raise ValueError(f"{name}: our lists are longer than those of {side}")
            values = values[inside]
        if values.shape != theirs.shape:
            raise ValueError(f"{name}: we have {values.shape}, {side} {theirs.shape}")
        if values.dtype.kind == "f":
            same = np.allclose(values, theirs, rtol=1e-4, atol=1e-4)
        else:
            pairs = len(np.unique(values * (theirs.max() + 1) + theirs))
            counts = np.bincount(values)[3:], np.bincount(theirs)[3:]
            same = bool(
                pairs == len(np.unique(values)) == len(np.unique(theirs))
                and np.array_equal(values[values < 3], theirs[values < 3])
                and np.array_equal(*counts)
                and (np.diff(counts[0]) <= 0).all()
            )
        if not same:
            raise ValueError(f"{name} differs between us and {side}; nothing was timed")


class Ours:
    """Our side: a table, the workflow fitted on it, the graph that serves and the transform of tables."""

    def __init__(self, table: pa.Table, stats: Path) -> None:
        self.table = table
        self.stats = str(stats)
        self.fit()
        self.compile()

    def fit(self) -> None:
        self.workflow = fit(defined.workflow(self.table.column_names, self.stats), [self.table])

    def compile(self) -> None:
        self.bulk = BulkTransform(self.workflow)

    def transform(self) -> dict[str, np.ndarray]:
        return self.bulk.transform(self.table)

    def fit_and_transform(self) -> None:
        self.fit()
        self.compile()
        self.transform()

    def graph(self) -> Callable[[int], object]:
        """The graph that serves, as a function of how many of the table's rows it is given."""
        model = compile_workflow(self.workflow)
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {}
        for spec in session.get_inputs():
            column = self.table[spec.name]
            missing = {"tensor(string)": "", "tensor(int64)": np.iinfo(np.int64).min}.get(spec.type, np.nan)
            feeds[spec.name] = column.fill_null(missing).to_numpy()
        names = [output.name for output in session.get_outputs()]

        def run(rows: int) -> object:
            return session.run(names, {name: values[:rows] for name, values in feeds.items()})

        return run


def wide(rows: int, *, text: bool, seed: int, repeats: int, folder: Path, report: Report) -> list[Result]:
    """One row, 100 rows and the whole wide table."""
    kind = "text keys" if text else "integer keys"
    table = wide_table(rows, text=text, seed=seed)
    path = folder / "table.parquet"
    pq.write_table(table, path)
    results: list[Result] = []
    ours = Ours(table, folder / "ours")
    run = ours.graph()
    with (
        peer("nvtabular_features.py", Path(sys.executable)) as nvtabular,
        peer("polars_features.py", peer_python("polars")) as polars,
    ):
        _prepare(nvtabular, ours, "NVTabular", folder, stats=str(folder / "nvtabular"))
        _prepare(polars, ours, "Polars", folder)

        def add(case: str, count: int, sides: dict[str, Any]) -> None:
            results.extend(compare(f"{case}, {kind}", count, sides, repeats=repeats, report=report))

        for count, calls in ((1, 5), (100, 5)):
            side = nvtabular.side("transform", rows=count, calls=calls)
            sides = {"graph": timed(partial(run, count)), "NVTabular": _each(side, calls)}
            add("transform", count, sides)
        add(
            "transform",
            rows,
            {
                "bulk transform": timed(ours.transform),
                "graph": timed(partial(run, rows)),
                "NVTabular": nvtabular.side("transform", rows=rows),
                "Polars": polars.side("transform", rows=rows),
            },
        )
        add(
            "fit",
            rows,
            {"fit": timed(ours.fit), "NVTabular": nvtabular.side("fit"), "Polars": polars.side("fit")},
        )
        both = _both(polars, rows)
        add(
            "fit and transform",
            rows,
            {"fit, compile, transform": timed(ours.fit_and_transform), "Polars": both},
        )
    return results


def lists(rows: int, *, seed: int, repeats: int, folder: Path, report: Report) -> list[Result]:
    """The table with lists: NVTabular as installed and with our corrections, ours, Polars."""
    table = list_table(rows, seed=seed)
    path = folder / "table.parquet"
    pq.write_table(table, path)
    ours = Ours(table, folder / "ours")
    results: list[Result] = []
    with (
        peer("nvtabular_features.py", Path(sys.executable)) as upstream,
        peer("nvtabular_features.py", Path(sys.executable), "patched") as patched,
        peer("polars_features.py", peer_python("polars")) as polars,
    ):
        _prepare(polars, ours, "Polars", folder)
        _prepare(patched, ours, "NVTabular, corrected", folder, stats=str(folder / "patched"))
        # As slow as it is, it runs only where it is timed; tests/workflows/test_patches.py has that it gives
        # what the corrected one gives.
        upstream.ask("load", path=str(path), stats=str(folder / "upstream"))
        for case, first, arguments in (
            ("fit, lists", ours.fit, {}),
            ("transform, lists", ours.transform, {"rows": rows}),
        ):
            work = case.split(",")[0]
            sides = {
                "bulk transform" if work == "transform" else "fit": timed(first),
                "NVTabular": upstream.side(work, **arguments),
                "NVTabular, corrected": patched.side(work, **arguments),
                "Polars": polars.side(work, **arguments),
            }
            results.extend(compare(case, rows, sides, repeats=repeats, report=report))
        sides = {"fit, compile, transform": timed(ours.fit_and_transform), "Polars": _both(polars, rows)}
        results.extend(compare("fit and transform, lists", rows, sides, repeats=repeats, report=report))
    return results


def _prepare(other: Peer, ours: Ours, name: str, folder: Path, **arguments: str) -> None:
    """Load, fit and transform once, and compare with ours."""
    rows = ours.table.num_rows
    other.ask("load", path=str(folder / "table.parquet"), **arguments)
    other.ask("fit")
    other.ask("transform", rows=rows)
    saved = Path(tempfile.mkdtemp(dir=folder))
    other.ask("save", folder=str(saved))
    check(ours.transform(), saved, name)
    shutil.rmtree(saved)


def _each(side: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """A side that does `calls` calls at once, told for one of them."""

    def one() -> Any:
        cost = side()
        return type(cost)(cost.wall / calls, cost.cpu / calls)

    return one


def _both(polars: Peer, rows: int) -> Callable[[], Any]:
    fitted, transformed = polars.side("fit"), polars.side("transform", rows=rows)

    def both() -> Any:
        first, second = fitted(), transformed()
        return type(first)(first.wall + second.wall, first.cpu + second.cpu)

    return both


def run(
    *, rows: int = MILLION, repeats: int = 5, seed: int = 0, file: Path | None = None, report: Report = print
) -> list[Result]:
    """Run the benchmark.

    Args:
        rows: of each table.
        repeats: turns of each side in each case.
        seed: of the tables.
        file: where the report goes as JSON.
        report: called with a line as each figure is known.
    """
    before = machine()
    results: list[Result] = []
    for part in ("integer", "text", "lists"):
        with tempfile.TemporaryDirectory(prefix="pasar-features-") as place:
            folder = Path(place)
            if part == "lists":
                results += lists(rows, seed=seed, repeats=repeats, folder=folder, report=report)
            else:
                results += wide(
                    rows, text=part == "text", seed=seed, repeats=repeats, folder=folder, report=report
                )
    with peer("polars_features.py", peer_python("polars")) as polars:
        peers = polars.ask("versions")["versions"]
    ours = versions("nvtabular", "merlin-core", "onnxruntime", "pyarrow", "pandas", "numpy")
    settings = {"rows": rows, "repeats": repeats, "seed": seed}
    if file:
        write_report(file, "features", settings, before, {**ours, "peers": peers}, results)
    return results
