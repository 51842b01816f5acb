"""Trained models and fitted workflows become a release: graphs, tables and a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd

from ensemble.channels.two_tower import SEARCHED
from ensemble.plan import FILE, CascadeConfig, Plan, QueryColumn
from ensemble.release import Release, ReleaseWriter
from ensemble.search import MOST_QUERIES, MarketIndex, write_indexes
from market.item_graph import ItemGraph, LowRank, MarketGraphs
from market.kinds import KINDS
from market.offers import FOREIGN, language_fit
from market.profiles import profile
from market.statistics import PAIR_FEATURES, counts, trend
from models.batches import UNSEEN, TrainingSet
from models.calibration import Calibration
from models.conversion import conversions
from models.export import Layout, content_tower_to_onnx, query_tower_to_onnx, ranker_to_onnx, rename
from models.seasons import training_positives
from models.two_tower import encode
from models.unseen import known_markets, market_shares
from supply.fatigue import FatigueConfig, tired_of
from workflows.compile import feature_name, join
from workflows.examples import TRAIN, Examples, whole_numbers
from workflows.features import Encoded
from workflows.frames import content_frame, language_codes, user_frame
from workflows.habits import followed_sellers, shown
from workflows.vectors import raw_vectors, vector_columns

from merlin.schema import Tags  # isort: skip

READS = ("candidates", "recent", "retrieval_score", "market_affinity", "low_rank_affinity", "conversion")
"""Tensors of the cascade that a ranking graph may read beside encoded features."""
TIRED = 32
"""Contents and sellers kept for each user that are not shown for a while."""
NEVER_ENDS = np.iinfo(np.int64).max


def write_release(
    path: Path,
    *,
    name: str,
    data: TrainingSet,
    two_tower: Any,
    ranker: Any,
    tasks: tuple[str, ...],
    calibration: Calibration,
    config: CascadeConfig,
    info: Mapping[str, Any] | None = None,
) -> Release:
    """Write a release folder; it appears complete and checked, or not at all.

    Args:
        path: a folder that does not exist yet.
        data: what the models were trained on; user states and contents come from it.
        two_tower, ranker: trained Merlin models; `tasks` in the order of the ranker's output.
        calibration: of the ranker's probabilities, markets in the order of the examples.
        info: anything about the build worth keeping, such as its metrics; JSON.
    """
    examples, features = data.examples, data.features
    layout = Layout.of(features.query.schema, features.content.schema)
    # The client reads the tasks of a reply from what the served `feed` says of itself.
    said = {**(info or {}), "feed": {"tasks": ",".join(tasks)}}
    with ReleaseWriter(path, name=name, info=said) as release:
        # One graph after another: each holds all embeddings of its model.
        columns = _write_query_graph(release, data, two_tower, layout)
        ranking_reads = _write_ranking_graph(release, ranker, layout, tasks, calibration)
        vectors = _write_content_graph(release, data, two_tower, layout)
        plan = Plan(
            markets=examples.markets,
            tasks=tasks,
            columns=columns,
            history_length=layout.history_length,
            dim=vectors.shape[1],
            query_ids=len(layout.query_ids),
            query_lists=len(layout.query_lists),
            query_numbers=max(len(layout.query_numbers), 1),
            content_ids=len(layout.content_ids),
            content_numbers=len(layout.content_numbers) + len(PAIR_FEATURES),
            as_of=examples.end,
            learned_until=examples.learned_until,
            split=examples.split,
            config=config,
            ranking_reads=ranking_reads,
            recency=data.graph.graph.recency,
            season_s=0 if data.seasons is None else data.seasons.counts.after_s,
        )
        release.json(FILE, plan.to_json())
        known = known_markets(examples)
        available = shown_where(examples, known)
        release.array("available.npy", available)
        release.array("content_vectors.npy", vectors)
        most = round(SEARCHED * config.retrieved)
        write_indexes(release, search_indexes(two_tower, data, available, vectors, most))
        ids, numbers = layout.pack_contents(features.content.arrays)
        release.array("content_ids.npy", ids)
        release.array("stand_in_ids.npy", stand_in_ids(layout.content_ids, known))
        release.array("content_numbers.npy", numbers)
        if "watch" in tasks:
            times = examples.watch_time
            release.array("watch_edges.npy", times.edges)
            release.array("watch_quantiles.npy", times.quantiles)
        _write_contents(release, data, plan)
        _write_users(release, data, plan)
        for file, array in item_graphs(data.graph.graph, data.market_graphs, data.low_rank).items():
            release.array(file, array)
    return Release.open(path)


def _write_query_graph(
    release: ReleaseWriter, data: TrainingSet, two_tower: Any, layout: Layout
) -> tuple[QueryColumn, ...]:
    """From the raw columns of a query, which it returns, to its vector and packed features."""
    encoded = data.features.query
    graph = _with_workflow(encoded, query_tower_to_onnx(two_tower, encoded.schema, layout), "query")
    columns = _columns(graph, data.examples)
    onnx.save(rename(graph, {c.name: f"raw_{c.name}" for c in columns}), str(release.path("query.onnx")))
    return columns


def _write_ranking_graph(
    release: ReleaseWriter, ranker: Any, layout: Layout, tasks: tuple[str, ...], calibration: Calibration
) -> tuple[str, ...]:
    """From packed features to calibrated probabilities; returns what of `READS` it reads."""
    graph = _calibrated(ranker_to_onnx(ranker, layout, tasks), calibration)
    onnx.save(graph, str(release.path("ranking.onnx")))
    return tuple(value.name for value in graph.graph.input if value.name in READS)


def _write_content_graph(
    release: ReleaseWriter, data: TrainingSet, two_tower: Any, layout: Layout
) -> np.ndarray:
    """From the raw columns of contents to their vectors, which it returns, float32[N, D]."""
    encoded = data.features.content
    tower = content_tower_to_onnx(two_tower, encoded.schema, layout, data.features.spaces)
    graph = _with_workflow(encoded, tower, "content")
    onnx.save(graph, str(release.path("content.onnx")))
    return content_vectors(graph, raw_contents(data.examples))


def _write_contents(release: ReleaseWriter, data: TrainingSet, plan: Plan) -> None:
    """What the log says of contents, and what the catalogue does."""
    examples, offers, contents = data.examples, data.offers, content_frame(data.examples.contents)
    release.array("popularity.npy", (market_shares(examples) @ data.latest).astype(np.float32))
    release.array("popularity_world.npy", data.latest.sum(axis=0))
    release.array("conversion.npy", conversions(examples))
    release.array("trend.npy", market_trends(examples, plan.config))
    # As long as nobody has asked the ranker; see `ensemble.appraisal`.
    release.array("worth.npy", np.full(examples.available.shape, np.nan, np.float32))
    release.array("exposures.npy", exposures(examples))
    if data.seasons is not None:
        for what, values in zip(("market", "content", "time"), training_positives(examples)):
            release.array(f"season_{what}.npy", values)
    release.array("created_at.npy", whole_numbers(examples.contents, "created_at", 0))
    release.array("ended_at.npy", whole_numbers(examples.contents, "ended_at", NEVER_ENDS))
    release.array("stock.npy", examples.moments.stock_left(examples.end))
    sold_by = _text_column(contents, "seller_id")
    release.array("seller_code.npy", _seller_codes(contents))
    release.array("seller_ids.npy", _text(pd.Series(np.unique(sold_by[sold_by != ""]), dtype=object)))
    release.array("category_code.npy", offers.category)
    release.array("kind_code.npy", pd.Index(KINDS).get_indexer(contents["kind"]).astype(np.int8))
    release.array("price_usd.npy", offers.price_usd)
    release.array("price_usual.npy", offers.usual)
    release.array("purchasing_power.npy", offers.power)
    release.array("language_code.npy", offers.language.astype(np.int32))
    release.array("language_fit.npy", offers.fit)
    followed = {c.name.removeprefix("hist_") for c in plan.columns if c.source == "history"}
    ruled = {"content_id", "kind", "category", "seller_id", "content_language"}
    for name in sorted(followed | ruled):
        release.array(f"text_{name}.npy", _text_column(contents, name))


def _write_users(release: ReleaseWriter, data: TrainingSet, plan: Plan) -> None:
    """Users' attributes, and what the whole log says of them."""
    examples = data.examples
    seller = _seller_codes(content_frame(examples.contents))
    release.array("user_id.npy", _text(examples.users["user_id"]))
    release.array("user_language.npy", data.speaks.astype(np.int32))
    release.array("user_history.npy", examples.latest_history)
    release.array("user_seen.npy", examples.latest_seen)
    if data.seasons is not None:
        release.array("user_since.npy", data.seasons.latest)
    release.array("user_followed.npy", followed_sellers(examples, seller))
    for what, array in tired(examples, seller, plan.config.fatigue, examples.end).items():
        release.array(f"user_tired_{what}.npy", array)
    users = user_frame(examples.users)
    for column in plan.columns:
        if column.source == "user":
            release.array(f"attribute_{column.name}.npy", _attribute(users[column.name], column.kind))


def item_graphs(graph: ItemGraph, by_market: MarketGraphs, low_rank: LowRank) -> dict[str, np.ndarray]:
    """The item graphs as a release holds them: arrays by file."""
    return {
        "graph_neighbours.npy": graph.neighbours,
        "graph_weights.npy": graph.weights,
        "market_graph_place.npy": by_market.place,
        "market_graph_neighbours.npy": by_market.graph.neighbours,
        "market_graph_weights.npy": by_market.graph.weights,
        "low_rank_source.npy": low_rank.source,
        "low_rank_target.npy": low_rank.target,
    }


def shown_where(examples: Examples, known: np.ndarray) -> np.ndarray:
    """Where a content may be shown, bool[M, N]: where it is sold and, in a market that is not known, spoken.

    A log tells how people of a market take to foreign languages. While there is little of it the market's
    profile is all there is, and the contents of its neighbours, which are known to be wanted there, are in
    theirs. A market that sells nothing in its languages shows what it sells.

    Args:
        known: bool[M], see `models.unseen.known_markets`.
    """
    shown = examples.available.copy()
    languages, code, _ = language_codes(examples)
    for place in np.flatnonzero(~known):
        fit = language_fit(profile(examples.markets[place]).languages, languages)[-1, code]
        spoken = shown[place] & (fit > FOREIGN)
        if (spoken & (code >= 0)).any():  # of unknown languages alone a market does not live
            shown[place] = spoken
    return shown


def stand_in_ids(columns: Sequence[str], known: np.ndarray) -> np.ndarray:
    """What the ranker reads in each market in place of contents' encoded ids, int64[M, F]; 0 keeps them.

    A market that is not known reads every content as one that is new. What an id says of a content is what
    people of other markets made of it, in a language that is foreign to them or to this market, and those
    that have one are what its neighbours import: the ranker took them to be better than all that is only sold
    here.

    Args:
        columns: of the contents' encoded ids.
        known: bool[M], see `models.unseen.known_markets`.
    """
    return np.where(known[:, None] | (np.array(columns, object) != "content_id"), 0, UNSEEN)


def market_trends(examples: Examples, config: CascadeConfig) -> np.ndarray:
    """What each market wants by the end of the training part, float32[M, N], see `market.statistics.trend`.

    Without one cut by time the order of a log says nothing about now, and every outcome counts alike.
    """
    pairs, queries = examples.pairs, examples.queries
    rows = np.flatnonzero((pairs.split == TRAIN) & pairs.positive)
    query, content = pairs.query[rows], pairs.content[rows]
    age = np.zeros(len(rows))
    if examples.split == "time" and len(rows):
        time = queries.time[query]
        age = (time.max() - time) / (3600 * config.trending_half_life_h)
    regions = np.unique([profile(code).region for code in examples.markets], return_inverse=True)[1]
    made = counts(queries.market[query], content, np.exp2(-age), examples.available.shape)
    return trend(made, examples.available, regions, config.trending_prior)


def exposures(examples: Examples) -> np.ndarray:
    """How often each content was logged by market in the training part, float32[M, N]."""
    pairs = examples.pairs
    rows = pairs.rows(TRAIN)
    market = examples.queries.market[pairs.query[rows]]
    return counts(market, pairs.content[rows], None, examples.available.shape).astype(np.float32)


def tired(
    examples: Examples, seller: np.ndarray, config: FatigueConfig, before: int
) -> dict[str, np.ndarray]:
    """What each user is tired of at a time, see `supply.fatigue.tired_of`.

    Args:
        seller: int32[N], codes of the contents' sellers, -1 where unknown.
        before: only what happened before this second counts.

    Returns:
        contents, sellers: int32[U, T], rows and codes, -1 fills; contents_until, sellers_until: int64[U, T],
        the second from which each may be shown again.
    """
    window_s = int(config.window_h * 3600)
    user, content, time, wanted = shown(examples, before - window_s, before)
    made: dict[str, np.ndarray] = {}
    for name, what, shows in (
        ("contents", content, config.content_shows),
        ("sellers", seller[content], config.seller_shows),
    ):
        made[name], made[f"{name}_until"] = tired_of(
            user,
            what,
            time,
            wanted,
            users=len(examples.users),
            shows=shows,
            window_s=window_s,
            end=before,
            most=TIRED,
        )
    return made


def _with_workflow(encoded: Encoded, tower: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The compiled workflow with a tower behind it: raw columns and vectors in, the tower's tensors out."""
    vectors = encoded.schema.select_by_tag(Tags.EMBEDDING).column_names
    names = (value.name for value in tower.graph.input)
    connect = {feature_name(name): name for name in names if name not in vectors}
    return join(encoded.graph, tower, connect=connect, name=name)


def _calibrated(ranker: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """The ranker's graph with its calibration behind it."""
    ranker = rename(ranker, {"probabilities": "uncalibrated"})
    connect = {value.name: value.name for value in ranker.graph.output}
    return join(ranker, calibration.to_onnx(), connect=connect, name="ranking")


def raw_contents(examples: Examples) -> dict[str, np.ndarray]:
    """Raw columns of contents as the content graph reads them, [N] each and vectors [N, V]."""
    frame = content_frame(examples.contents)
    columns = {
        str(name): column.fillna("").to_numpy(object) if column.dtype == object else column.to_numpy()
        for name, column in frame.items()
    }
    return columns | {
        name: raw_vectors(examples.contents, name) for name in vector_columns(examples.contents)
    }


def content_vectors(
    graph: onnx.ModelProto, columns: Mapping[str, np.ndarray], batch: int = 8192
) -> np.ndarray:
    """Vectors of contents from their raw columns, `raw_contents`, through the served graph, float32[N, D]."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = {tensor.name: columns[tensor.name] for tensor in session.get_inputs()}
    rows = len(next(iter(arrays.values())))
    parts = [
        session.run(["content_vector"], {name: a[start : start + batch] for name, a in arrays.items()})[0]
        for start in range(0, rows, batch)
    ]
    return np.concatenate(parts)


def search_indexes(
    two_tower: Any, data: TrainingSet, available: np.ndarray, vectors: np.ndarray, k: int
) -> list[MarketIndex]:
    """An index for each market over its contents, tuned with queries that were logged there.

    Args:
        available: bool[M, N], where a content may be shown.
        vectors: float32[N, D], of all contents.
        k: the most results that a search asks for.
    """
    examples = data.examples
    rng = np.random.default_rng(0)
    indexes = []
    for market, here in enumerate(available):
        logged = np.flatnonzero(examples.queries.market == market)
        asked = np.sort(rng.permutation(logged)[:MOST_QUERIES])
        queries = encode(two_tower.query_encoder, data.query_arrays(asked)) if len(asked) else vectors[:0]
        indexes.append(MarketIndex.build(vectors[here], queries, k=k))
    return indexes


_KIND = {onnx.TensorProto.STRING: "string", onnx.TensorProto.INT64: "integer"}


def _columns(query: onnx.ModelProto, examples: Any) -> tuple[QueryColumn, ...]:
    """The query graph's inputs, each with where the user-state stage finds it."""
    users = set(user_frame(examples.users.head(0)).columns) - {"user_id"}
    columns = []
    for value in query.graph.input:
        kind = _KIND.get(value.type.tensor_type.elem_type, "number")
        if value.name.startswith("hist_"):
            source = "history"
        elif value.name in users:
            source = "user"
        elif value.name in ("user_id", "market", "history_length"):
            source = "request"
        else:
            source = "context"
        columns.append(QueryColumn(value.name, kind, source))
    return tuple(columns)


def _text_column(contents: pd.DataFrame, name: str) -> np.ndarray:
    """A column as text[N], "" where it is null or absent."""
    return _text(contents[name]) if name in contents else np.full(len(contents), "")


def _text(values: pd.Series) -> np.ndarray:
    return values.fillna("").to_numpy(str)


def _attribute(values: pd.Series, kind: str) -> np.ndarray:
    """A user column as the stage reads it; nulls as the compiled workflow takes them."""
    if kind == "string":
        return _text(values)
    if kind == "integer":
        return values.fillna(np.iinfo(np.int64).min).to_numpy(np.int64)
    return values.fillna(0).to_numpy(np.float32)


def _seller_codes(contents: pd.DataFrame) -> np.ndarray:
    """int32[N], equal for contents of one seller; -1 where it is not known."""
    if "seller_id" not in contents:
        return np.full(len(contents), -1, np.int32)
    return pd.factorize(contents["seller_id"], sort=True)[0].astype(np.int32)
