"""What embeddings stand for that training never saw: a market's neighbours and their languages, any other
column's average."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from market.languages import base
from market.neighbours import neighbour_shares, own_shares
from market.profiles import profile
from workflows.examples import TRAIN, Examples
from workflows.frames import content_frame

from .batches import UNSEEN, TrainingSet
from .blocks import EmbeddingTable, table_of
from .gates import Gates

from merlin.schema import Tags  # isort: skip

LANGUAGE = "content_language"
BLOCK = 1 << 20
"""Rows that are counted at once."""
KNOWN = 0.5
"""Own share from which on a market's log decides where nothing can be shared: languages, ids of contents."""


def market_shares(examples: Examples) -> np.ndarray:
    """Shares of own and neighbours' rows by the training part, float64[M, M], see `neighbour_shares`."""
    return neighbour_shares(examples.markets, _outcomes(examples))


def known_markets(examples: Examples) -> np.ndarray:
    """bool[M]: markets that count for `KNOWN` or more beside their neighbours."""
    return own_shares(_outcomes(examples)) >= KNOWN


def _outcomes(examples: Examples) -> np.ndarray:
    """Wanted outcomes of the training part, float64[M]."""
    return examples.popularity.sum(axis=1, dtype=np.float64)


def fill_unseen(model: tf.keras.Model, data: TrainingSet, forgotten: Collection[str] = ()) -> None:
    """Give the embeddings that training never touched a meaning, in place.

    They are as they were drawn, which is noise, and those it hardly touched are mostly that. A market becomes
    the mean of itself and its neighbours (`market.neighbours`), in its gates too: itself alone with enough
    outcomes, its neighbours alone without any. A language that only markets short of outcomes speak becomes,
    by the same shares, the first ones of their neighbours: training showed contents in it abroad, where
    nobody understands them. Of every other domain an id that training never showed, that of unseen values
    first of all, becomes the mean of those it did, weighted by how often.

    Args:
        forgotten: domains of ids that training showed as unseen now and then (`batches.forget_ids`), so that
            it did touch what stands for the unseen; they stay as they are.
    """
    shares = market_shares(data.examples)
    codes = UNSEEN + 1 + np.arange(len(shares))

    def start_markets(rows: np.ndarray) -> None:
        if shares.any():
            rows[codes] = shares @ rows[codes]

    table = table_of(model)
    rows = table.embeddings.numpy()
    for domain, seen in _shown(data, table).items():
        first = table.first[domain]
        own = rows[first : first + len(seen)]
        if domain == "market":
            start_markets(own)
            seen = seen.astype(np.float64)
            seen[codes] *= shares.diagonal()
            unseen = np.isin(np.arange(len(seen)), codes, invert=True) & (seen == 0)
        else:
            unseen = seen == 0
        unseen[0] = False  # padding stands for nothing
        if domain not in forgotten and seen.any():
            own[unseen] = seen @ own / seen.sum()
        if domain == LANGUAGE:
            _translate(own, data, shares)
    table.embeddings.assign(rows)
    for layer in model.submodules:
        if isinstance(layer, Gates) and "market" in layer.kernels:
            kernel = layer.kernels["market"].numpy()
            start_markets(kernel)
            layer.kernels["market"].assign(kernel)


def _translate(rows: np.ndarray, data: TrainingSet, shares: np.ndarray) -> None:
    """Make contents' languages that only markets short of outcomes speak their neighbours' first.

    Args:
        rows: float32[ids, D], embeddings of contents' languages, changed in place.
        shares: float64[M, M], see `market_shares`. A language keeps the greatest own share of the markets
            that speak it.
    """
    markets, encoded = data.examples.markets, data.features.content.arrays[LANGUAGE]
    raw = content_frame(data.examples.contents)[LANGUAGE]
    language = np.array([base(str(code)) for code in raw], object)
    spoken = [[base(code) for code in profile(market).languages] for market in markets]
    own, trained = shares.diagonal(), rows.copy()
    heard: dict[str, float] = {}
    for place, codes in enumerate(spoken):
        heard |= {code: max(own[place], heard.get(code, 0)) for code in codes}
    for place in np.flatnonzero(own < 1):
        weights = np.zeros(len(rows))
        for near in np.flatnonzero(shares[place]):
            if near != place:
                theirs = encoded[language == spoken[near][0]]
                count = np.bincount(theirs, minlength=len(rows))
                weights += shares[place, near] * count / max(len(theirs), 1)
        if not weights.any():
            continue
        first = weights @ trained / weights.sum()
        for code in set(spoken[place]):
            new = np.unique(encoded[language == code])
            new = new[new > UNSEEN]
            if heard[code] < 1:
                rows[new] = heard[code] * trained[new] + (1 - heard[code]) * first


def _shown(data: TrainingSet, table: EmbeddingTable) -> dict[str, np.ndarray]:
    """How often training showed each id, int64[ids] by domain; what pads lists it never did."""
    examples, features = data.examples, data.features
    queries, pairs = examples.queries.rows(TRAIN), examples.pairs.rows(TRAIN)
    of_content = np.bincount(examples.pairs.content[pairs], minlength=len(features.content))
    shown: dict[str, np.ndarray] = {}
    for schema, arrays, weights in (
        (features.query.schema, {n: a[queries] for n, a in features.query.arrays.items()}, None),
        (features.content.schema, features.content.arrays, of_content),
    ):
        for column in schema.select_by_tag(Tags.CATEGORICAL):
            ids, size = arrays[column.name], int(column.int_domain.max) + 1
            count = shown.setdefault(column.int_domain.name, np.zeros(size, np.int64))
            for part in range(0, len(ids), BLOCK):
                here = slice(part, part + BLOCK)
                weight = None if weights is None or ids.ndim == 2 else weights[here]
                count += np.bincount(ids[here].ravel(), weight, size).astype(np.int64)
    for count in shown.values():
        count[0] = 0
    return {name: count for name, count in shown.items() if name in table.first}
