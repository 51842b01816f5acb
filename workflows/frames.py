"""Raw features of contents, users and queries, named as `workflows.features` tags them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pandas as pd
import pyarrow as pa

from market.calendar import local_context
from market.offers import Offers
from market.profiles import MARKETS
from workflows.examples import SIGNS, Examples

#: Contract columns of a content that are also followed through a user's history; text attributes are too.
HISTORY_COLUMNS = ("content_id", "category", "seller_id")

#: Prices above are this one (US dollars): what is computed of a float32 stays finite.
DEAREST_USD = 1e12


def content_frame(contents: pd.DataFrame) -> pd.DataFrame:
    """Raw features of contents, named as the schema names them; prices in US dollars."""
    frame = pd.DataFrame({"content_id": contents["content_id"], "kind": contents["kind"]})
    for name in ("seller_id", "category"):
        if name in contents:
            frame[name] = contents[name]
    if "language" in contents:
        frame["content_language"] = contents["language"]
    if "duration_s" in contents:
        frame["duration_s"] = contents["duration_s"].astype("float32")
    if "price" in contents and "currency" in contents:
        usd = contents["price"] * contents["currency"].map(_usd_per_unit())
        frame["price_usd"] = usd.clip(upper=DEAREST_USD).astype("float32")
    for name in (f"seller_{sign}" for sign in SIGNS):
        if name in contents:
            frame[name] = contents[name]
    for name in _attributes(contents):
        frame[f"content_{name}"] = contents[name]
    return frame


def user_frame(users: pd.DataFrame) -> pd.DataFrame:
    """Raw features of users that do not change from query to query; the market comes with the query."""
    names = [c for c in ("user_id", "language", "age_band", "gender") if c in users]
    frame = users[names].copy()
    for name in _attributes(users):
        frame[f"user_{name}"] = users[name]
    return frame


def context_frame(markets: np.ndarray, times: np.ndarray) -> pd.DataFrame:
    """Raw features of the moment, local to the market: one row a query."""
    context = local_context(markets, times)
    return pd.DataFrame({field.name: getattr(context, field.name) for field in fields(context)})


def language_codes(examples: Examples) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The languages of contents and users: BCP 47 codes; their places int64[N] and int64[U], -1 for null."""
    tables = examples.contents, examples.users
    said = [
        table["language"] if "language" in table else pd.Series(None, table.index, dtype=object)
        for table in tables
    ]
    known = sorted(pd.concat(said).dropna().unique())
    content, user = (pd.Index(known, dtype=object).get_indexer(column) for column in said)
    return known, content.astype(np.int64), user.astype(np.int64)


def offers(examples: Examples) -> Offers:
    """Prices and languages of the catalogue as each market sees them."""
    contents = content_frame(examples.contents)
    count = len(contents)
    category = np.full(count, -1)
    if "category" in contents:
        category = pd.factorize(contents["category"], sort=True)[0]
    price = (
        contents["price_usd"].to_numpy() if "price_usd" in contents else np.full(count, np.nan, np.float32)
    )
    languages, language, _ = language_codes(examples)
    return Offers.of(
        examples.markets,
        examples.available,
        price_usd=price,
        category=category.astype(np.int32),
        language=language,
        languages=languages,
    )


def followed(contents: pd.DataFrame) -> list[str]:
    """Columns of `content_frame` that a query's history carries as `hist_…` lists."""
    texts = contents.select_dtypes("object").columns
    return [name for name in texts if name in HISTORY_COLUMNS or name.startswith("content_x_")]


def _attributes(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name.startswith("x_")]


def _usd_per_unit() -> dict[str, float]:
    return {m.currency: m.usd_per_unit for m in MARKETS.values() if m.currency}


def arrow_schema(frame: pd.DataFrame) -> pa.Schema:
    """The Arrow types of a frame of raw features, by its own types alone: a part of a table has the types of
    the whole, also where a column of texts has no value in it."""
    types = {n: pa.string() if t.kind == "O" else pa.from_numpy_dtype(t) for n, t in frame.dtypes.items()}
    return pa.schema(types.items())


def query_tables(examples: Examples, rows: np.ndarray, chunk: int = 100_000) -> Iterator[pa.Table]:
    """Raw features of queries int64[R], `chunk` at a time: user columns, market, the moment, history lists.

    A list holds what is known: contents that lack an attribute leave no trace in that attribute's list, for
    a null at the end of a list could not be told from padding.
    """
    users = user_frame(examples.users)
    contents = content_frame(examples.contents)
    codes = np.asarray(examples.markets, dtype=object)
    columns = {name: pa.array(contents[name], pa.string()) for name in followed(contents)}
    given = {name: contents[name].notna().to_numpy() for name in columns}
    queries = examples.queries
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        frame = users.iloc[queries.user[part]].reset_index(drop=True)
        market = codes[queries.market[part]]
        frame["market"] = market
        if examples.has_time:
            frame = pd.concat([frame, context_frame(market.astype(str), queries.time[part])], axis=1)
        history = queries.history[part]
        known = history >= 0
        frame["history_length"] = known.sum(axis=1).astype(np.float32)
        table = pa.Table.from_pandas(frame, arrow_schema(frame), preserve_index=False)
        for name, values in columns.items():
            there = known & given[name][history]
            offsets = pa.array(np.r_[0, np.cumsum(there.sum(axis=1))].astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, values.take(pa.array(history[there])))
            table = table.append_column(f"hist_{name}", lists)
        yield table
