"""NVTabular workflows, one an entity: what the schema's tags say becomes operators, statistics, arrays.

The tags of a raw column decide its operators:

=====================  ==========================================================
CATEGORICAL            Categorify (ids from 3; 0 pads, 1 is null, 2 is unseen)
CATEGORICAL + LIST     ListSlice to the last L, Categorify with the vocabulary of the
                       content column it follows, so both share one embedding table
CONTINUOUS             FillMissing(0), Clip, Normalize (float32)
CONTINUOUS + "log"     FillMissing(0), Clip at 0, LogOp, Normalize (float32)
=====================  ==========================================================

Each fitted workflow is compiled to an ONNX graph at once, and the graph is what training's folder keeps:
nothing is ever unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market.knobs import expect
from market.tables import SPLITS

from . import runtime  # noqa: F401  (sets the environment before NVTabular is imported)

import merlin.dtypes as merlin_types  # isort: skip
import nvtabular as nvt  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip
from nvtabular import ops  # isort: skip

from . import patches  # noqa: F401  # isort: skip  (NVTabular hashes values, not rows)
from .arrays import ArrayFiles
from .bulk import BulkTransform
from .cluster import ON_GPU, gpu_cluster
from .compile import compile_workflow
from .examples import HISTORIES, TRAIN, Examples
from .fit import fit
from .frames import arrow_schema, content_frame, followed, query_tables, user_frame
from .vectors import VectorSpace, raw_vectors, space_of, vector_columns, write_spaces

LOG = "log"
SPACES = "spaces.npz"
"""In the folder of features: how content vectors were encoded."""

#: Continuous columns without a logarithm are clipped to this and its negative.
MOST = 1e9

#: A deviation below this share of the mean may be rounding alone.
ROUNDING = 1e-3


@dataclass(frozen=True)
class FeatureConfig:
    """Knobs of the features.

    Attributes:
        history_length: events of a user's past that a query carries (events).
        seen_length: contents of a user's past that are not shown again (contents); no fewer than
            `history_length`, since what is in the history and not among these is taken for a cart.
        content_min_count: training positives a content needs for an id of its own (events).
        user_min_count: training queries a user needs for an id of its own (queries).
        min_count: rows any other category needs for an id of its own (rows).
        season_days: how far from the latest event of a user's history outcomes are of its season, in which
            some contents are popular; for logs of years. 0 leaves seasons out (days).
        vector_dims: numbers that a column of content vectors becomes at most; 0 leaves content vectors out.
        partition_mb: size of one Dask partition on a GPU (MB).
    """

    history_length: int = 20
    seen_length: int = 200
    content_min_count: int = 2
    user_min_count: int = 10
    min_count: int = 2
    season_days: float = 0.0
    vector_dims: int = 32
    partition_mb: int = 128

    def __post_init__(self) -> None:
        counts = "history_length seen_length content_min_count user_min_count min_count partition_mb"
        expect(self, "features", counts, least=1)
        expect(self, "features", "season_days vector_dims", least=0)
        if self.seen_length < self.history_length:
            raise ValueError(
                f"features.seen_length is {self.seen_length}; it must be at least features.history_length, "
                f"{self.history_length}, or what was bought would be shown again as if it lay in a cart"
            )


@dataclass(frozen=True)
class Encoded:
    """Encoded features of one entity.

    Attributes:
        arrays: by column, int64[R], float32[R] or, for lists, int64[R, L] padded with 0 at the right.
        schema: Merlin schema of these columns, with cardinalities and shared domains.
        graph: ONNX graph from the raw columns to these.
    """

    arrays: Mapping[str, np.ndarray]
    schema: Schema
    graph: onnx.ModelProto

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class Features:
    """Encoded queries (all splits, in the order of `Examples.queries`) and contents (in table order).

    Attributes:
        keys: by domain, text[K] of the categories that have an id of their own, in the order of their ids.
        spaces: how content vectors were encoded, one a column; `content` has them under their names, tagged
            `Tags.EMBEDDING`. The graph of `content` does not: they need no vocabulary and no null of a table.
    """

    query: Encoded
    content: Encoded
    spaces: tuple[VectorSpace, ...]
    keys: Mapping[str, np.ndarray]


CONTENT_TAGS: dict[str, list] = {
    "content_id": [Tags.CATEGORICAL, Tags.ITEM, Tags.ITEM_ID],
    "kind": [Tags.CATEGORICAL, Tags.ITEM],
    "seller_id": [Tags.CATEGORICAL, Tags.ITEM],
    "category": [Tags.CATEGORICAL, Tags.ITEM],
    "content_language": [Tags.CATEGORICAL, Tags.ITEM],
    "duration_s": [Tags.CONTINUOUS, Tags.ITEM, LOG],
    "price_usd": [Tags.CONTINUOUS, Tags.ITEM, LOG],
    "seller_rating": [Tags.CONTINUOUS, Tags.ITEM],
    "seller_followers": [Tags.CONTINUOUS, Tags.ITEM, LOG],
}
QUERY_TAGS: dict[str, list] = {
    "user_id": [Tags.CATEGORICAL, Tags.USER, Tags.USER_ID],
    "market": [Tags.CATEGORICAL, Tags.USER],
    "language": [Tags.CATEGORICAL, Tags.USER],
    "age_band": [Tags.CATEGORICAL, Tags.USER],
    "gender": [Tags.CATEGORICAL, Tags.USER],
    "history_length": [Tags.CONTINUOUS, Tags.USER, LOG],
    "hour": [Tags.CATEGORICAL, Tags.USER, Tags.CONTEXT],
    "weekday": [Tags.CATEGORICAL, Tags.USER, Tags.CONTEXT],
    "is_weekend": [Tags.CATEGORICAL, Tags.USER, Tags.CONTEXT],
    "is_holiday": [Tags.CATEGORICAL, Tags.USER, Tags.CONTEXT],
    "is_payday_window": [Tags.CATEGORICAL, Tags.USER, Tags.CONTEXT],
    "is_shopping_day": [Tags.CATEGORICAL, Tags.USER, Tags.CONTEXT],
    "days_to_payday": [Tags.CONTINUOUS, Tags.USER, Tags.CONTEXT],
}


def raw_schema(table: pa.Schema, entity: Tags) -> Schema:
    """Schema of an entity's raw columns with the tags that drive its workflow.

    Args:
        table: arrow schema of the raw table.
        entity: Tags.USER (queries) or Tags.ITEM (contents).
    """
    tags = CONTENT_TAGS if entity == Tags.ITEM else QUERY_TAGS
    columns = []
    for field in table:
        is_list = pa.types.is_list(field.type)
        if field.name in tags:
            column_tags = tags[field.name]
        elif is_list:
            column_tags = [Tags.CATEGORICAL, Tags.LIST, entity]
        elif pa.types.is_floating(field.type):
            column_tags = [Tags.CONTINUOUS, entity]
        else:
            column_tags = [Tags.CATEGORICAL, entity]
        element = field.type.value_type if is_list else field.type
        columns.append(
            ColumnSchema(
                field.name,
                tags=column_tags,
                dtype=merlin_types.string if pa.types.is_string(element) else element.to_pandas_dtype(),
                is_list=is_list,
                is_ragged=is_list,
            )
        )
    return Schema(columns)


def build_workflow(
    schema: Schema, config: FeatureConfig, stats: Path, vocabularies: Mapping[str, pd.Series] | None = None
) -> nvt.Workflow:
    """The workflow that a schema's tags describe, not fitted yet.

    Args:
        schema: raw columns with tags, see the module's table.
        stats: folder for NVTabular's vocabulary files.
        vocabularies: categories in id order, for lists, which follow another column, and for scalar columns
            whose categories are declared instead of counted.
    """
    categorical, continuous = schema.select_by_tag(Tags.CATEGORICAL), schema.select_by_tag(Tags.CONTINUOUS)
    lists = categorical.select_by_tag(Tags.LIST)
    minimum = {c: config.min_count for c in categorical.column_names}
    for tag, count in ((Tags.ITEM_ID, 0), (Tags.USER_ID, config.user_min_count)):
        minimum.update({c: count for c in categorical.select_by_tag(tag).column_names})
    vocabularies = vocabularies or {}
    outputs = None

    def add(node):
        nonlocal outputs
        outputs = node if outputs is None else outputs + node

    def declared(column: str) -> ops.Categorify:
        return ops.Categorify(
            vocabs={column: vocabularies[column]}, out_path=str(stats / column), dtype=np.int64
        )

    for column in categorical.excluding_by_tag(Tags.LIST).column_names:
        counted = ops.Categorify(
            freq_threshold=minimum[column], out_path=str(stats), dtype=np.int64, split_out=1
        )
        add([column] >> (declared(column) if column in vocabularies else counted))
    for column in lists.column_names:
        if column not in vocabularies:
            raise ValueError(f"list column {column!r} needs the vocabulary of the column it follows")
        add([column] >> ops.ListSlice(-config.history_length) >> declared(column))
    logs = continuous.select_by_tag(LOG).column_names
    plain = [c for c in continuous.column_names if c not in logs]
    if logs:
        add(
            logs
            >> ops.FillMissing(0)
            >> ops.Clip(min_value=0.0)
            >> ops.LogOp()
            >> ops.Normalize(out_dtype=np.float32)
        )
    if plain:
        add(
            plain
            >> ops.FillMissing(0)
            >> ops.Clip(min_value=-MOST, max_value=MOST)
            >> ops.Normalize(out_dtype=np.float32)
        )
    return nvt.Workflow(outputs)


def vocabulary(stats: Path, column: str) -> pd.Series:
    """Categories of a fitted Categorify in id order, without the null and unseen entries."""
    return pd.read_parquet(stats / "categories" / f"unique.{column}.parquet")[column].reset_index(drop=True)


def fit_features(
    examples: Examples,
    folder: Path,
    config: FeatureConfig,
    progress: Callable[[str], None] = lambda step: None,
    spaces: Mapping[str, VectorSpace] | None = None,
) -> Features:
    """Fit both workflows on the training part alone, then transform every row, out of core.

    Raw tables go to Parquet under `folder`, many files each. Where there is cudf, Dask streams them through
    NVTabular's fit in a LocalCUDACluster; where there is none they go file by file through `workflows.fit`,
    which gives the same. Either way the compiled workflow transforms them, as it does when it serves. A
    column without a value in the training part is left out: nothing can be learned from it.

    Args:
        folder: scratch space; made anew.
        progress: called with the name of each step as it begins.
        spaces: of columns of content vectors, as an earlier build had them, in place of those that would be
            fitted.

    Raises:
        ValueError: no content has enough positives, or `spaces` are of other vectors.
    """
    shutil.rmtree(folder, ignore_errors=True)
    stats = folder / "stats"
    stats.mkdir(parents=True)
    contents = content_frame(examples.contents)
    with gpu_cluster():
        content, known = _fit_contents(examples, contents, folder, config, progress, spaces or {})
        query = _fit_queries(examples, contents, content.arrays, folder, config, progress)
    write_spaces(folder / SPACES, known)
    return Features(query, content, known, _keys(stats, query.schema + content.schema))


def _fit_contents(
    examples: Examples,
    contents: pd.DataFrame,
    folder: Path,
    config: FeatureConfig,
    progress: Callable[[str], None],
    spaces: Mapping[str, VectorSpace],
) -> tuple[Encoded, tuple[VectorSpace, ...]]:
    """Encoded contents, by those that training wanted, and the spaces of their vectors.

    Args:
        contents: their `content_frame`.
    """
    progress("contents: fit")
    seen = examples.popularity.sum(axis=0) >= config.content_min_count
    if not seen.any():
        raise ValueError(
            f"no content has {config.content_min_count} positives in the training part; lower "
            "features.content_min_count or train on a longer log"
        )
    raw, out, types = folder / "raw", folder / "encoded" / "contents", arrow_schema(contents)
    for name, frame in (("contents-train", contents[seen]), ("contents", contents)):
        _write([pa.Table.from_pandas(frame, types, preserve_index=False)], raw / name)
    schema = raw_schema(types, Tags.ITEM).excluding_by_name(_empty(contents[seen]))
    workflow = build_workflow(schema, config, folder / "stats")
    _fit(workflow, raw / "contents-train", schema, config)
    progress("contents: transform")
    encoded = _transform(workflow, [raw / "contents"], out, {})
    return _with_vectors(encoded, examples.contents, seen, config.vector_dims, out, spaces)


def _fit_queries(
    examples: Examples,
    contents: pd.DataFrame,
    encoded: Collection[str],
    folder: Path,
    config: FeatureConfig,
    progress: Callable[[str], None],
) -> Encoded:
    """Encoded queries, by those of the training part.

    Args:
        contents: the contents' `content_frame`.
        encoded: columns of contents that were fitted, whose vocabularies histories share.
    """
    progress("queries: write")
    raw, stats = folder / "raw", folder / "stats"
    for split, name in enumerate(SPLITS):
        rows = np.flatnonzero(examples.queries.split == split)
        _write(query_tables(examples, rows), raw / f"queries-{name}")
    lists = {f"hist_{name}": name for name in followed(contents)}
    empty = _empty(contents[_met_in_histories(examples)])
    vocabularies = {
        k: vocabulary(stats, name) for k, name in lists.items() if name in encoded and name not in empty
    }
    # Where every category is rarer than its threshold there is none to follow.
    vocabularies = {name: known for name, known in vocabularies.items() if len(known)}
    train = np.unique(examples.queries.user[examples.queries.rows(TRAIN)])
    unknown = [*_empty(user_frame(examples.users).iloc[train]), *(lists.keys() - vocabularies)]
    schema = raw_schema(pq.read_schema(min((raw / "queries-train").glob("*.parquet"))), Tags.USER)
    schema = schema.excluding_by_name(unknown)
    # Every market has an id, with a log or without: what it starts from is `models.unseen`'s to say.
    declared = {"market": pd.Series(examples.markets)}
    workflow = build_workflow(schema, config, stats, vocabularies | declared)
    progress("queries: fit")
    _fit(workflow, raw / "queries-train", schema, config)
    progress("queries: transform")
    parts = [raw / f"queries-{name}" for name in SPLITS if any((raw / f"queries-{name}").iterdir())]
    lengths = {name: config.history_length for name in vocabularies}
    return _transform(workflow, parts, folder / "encoded" / "queries", lengths)


def _keys(stats: Path, schema: Schema) -> dict[str, np.ndarray]:
    """`Features.keys` of fitted workflows whose output has a schema."""
    lists = schema.select_by_tag(Tags.LIST).column_names
    keys = {}
    for column in schema.select_by_tag(Tags.CATEGORICAL).excluding_by_name(lists):
        # Declared categories have a folder of their own.
        own = stats / column.name if (stats / column.name).is_dir() else stats
        keys[column.name] = vocabulary(own, column.name).to_numpy().astype(str)
    return keys


def _with_vectors(
    encoded: Encoded,
    contents: pd.DataFrame,
    seen: np.ndarray,
    most: int,
    out: Path,
    known: Mapping[str, VectorSpace],
) -> tuple[Encoded, tuple[VectorSpace, ...]]:
    """Encoded contents with their vectors, and the spaces of these, see `space_of`."""
    arrays, schema, spaces = dict(encoded.arrays), encoded.schema, []
    for name in vector_columns(contents) if most else ():
        raw = raw_vectors(contents, name)
        spaces.append(space_of(name, raw, seen, most, known.get(name)))
        np.save(out / f"{name}.npy", spaces[-1](raw))
        arrays[name] = np.load(out / f"{name}.npy", mmap_mode="r")
        width = arrays[name].shape[1]
        tags = [Tags.EMBEDDING, Tags.ITEM]
        schema += Schema([ColumnSchema(name, dtype=np.float32, tags=tags, dims=(None, width))])
    return Encoded(arrays, schema, encoded.graph), tuple(spaces)


def _fit(workflow: nvt.Workflow, folder: Path, schema: Schema, config: FeatureConfig) -> None:
    """Fit a workflow on the Parquet files of a folder."""
    if ON_GPU:
        _fit_with_nvtabular(workflow, folder, schema, config)
    else:
        fit(workflow, _Files(folder), schema)


class _Files:
    """The tables of a folder's Parquet files, read anew each time they are walked through."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.parquet"))

    def __iter__(self) -> Iterator[pa.Table]:
        return map(pq.read_table, self._files)


def _fit_with_nvtabular(workflow: nvt.Workflow, folder: Path, schema: Schema, config: FeatureConfig) -> None:
    """Fit as `Workflow.fit` does, with two differences: types are those that the schema and the operators
    declare, for it takes them from the first part and fails where a column has no value there; and what does
    not vary has the deviation 0, for it finds one of rounding, by which a new value would be divided."""
    files = sorted(str(file) for file in folder.glob("*.parquet"))
    dataset = nvt.Dataset(files, engine="parquet", schema=schema, part_size=f"{config.partition_mb}MB")
    workflow.fit_schema(schema)
    statistics = workflow.graph.get_nodes_by_op_type([workflow.output_node], ops.StatOperator)
    workflow.executor.fit_phase(dataset, statistics)
    workflow.graph.construct_schema(schema, preserve_dtypes=True)
    for op in (node.op for node in statistics if isinstance(node.op, ops.Normalize)):
        for name, std in op.stds.items():
            small = not std >= ROUNDING * abs(op.means[name])  # NaN is, too
            if small and not _varies(folder, name, LOG in schema[name].tags):
                op.stds[name] = 0.0


def _varies(folder: Path, column: str, log: bool) -> bool:
    """Whether a continuous column has more than one value as `Normalize` gets it."""
    low, high = np.inf, -np.inf
    for file in folder.glob("*.parquet"):
        for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
            bounds = pc.min_max(pc.fill_null(batch[column], 0)).as_py()
            low, high = min(low, bounds["min"]), max(high, bounds["max"])
    low, high = np.clip(np.array([low, high], np.float32), 0 if log else -MOST, None if log else MOST)
    return bool(np.log(low + 1) < np.log(high + 1)) if log else bool(low < high)


def _met_in_histories(examples: Examples) -> np.ndarray:
    """bool[N]: contents in the history of a training query."""
    history = examples.queries.history[examples.queries.rows(TRAIN)]
    met = np.zeros(len(examples.contents), bool)
    for start in range(0, len(history), HISTORIES):
        part = history[start : start + HISTORIES]
        met[part[part >= 0]] = True
    return met


def _empty(frame: pd.DataFrame) -> list[str]:
    """Columns without a value; NVTabular cannot encode them."""
    return frame.columns[frame.isna().all()].tolist()


def _write(tables: Iterable[pa.Table], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number:05d}.parquet")


def _transform(
    workflow: nvt.Workflow,
    parts: list[Path],
    out: Path,
    list_lengths: Mapping[str, int],
) -> Encoded:
    """Transform Parquet folders one after another, file by file, into one array a column."""
    files = ArrayFiles(out)
    bulk = BulkTransform(workflow, list_lengths=list_lengths)
    for arrays in (bulk.transform(table) for part in parts for table in _Files(part)):
        for name, array in arrays.items():
            files.append(name, array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False))
    graph = compile_workflow(workflow, list_lengths=list_lengths, name=out.name)
    return Encoded(files.mapped(), _encoded_schema(workflow.output_schema, list_lengths), graph)


def _encoded_schema(schema: Schema, list_lengths: Mapping[str, int]) -> Schema:
    """The output schema with dense lists, and lists sharing the domain of the column they follow."""
    columns = []
    for column in schema:
        if column.name in list_lengths:
            column = column.with_shape((None, list_lengths[column.name]))
        if Tags.CATEGORICAL in column.tags:
            domain = dict(column.properties["domain"])
            domain["name"] = column.name.removeprefix("hist_")
            column = column.with_properties({"domain": domain})
        columns.append(column)
    return Schema(columns)
