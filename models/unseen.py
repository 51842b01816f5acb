"""What embeddings stand for that training never saw: a market's neighbours and their languages, any other
column's average."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import tensorflow as tf

from market.neighbours import neighbour_shares
from market.profiles import profile
from workflows.examples import TRAIN, Examples, content_frame

from .batches import UNSEEN, TrainingSet
from .blocks import EmbeddingTable, table_of
from .gates import Gates

from merlin.schema import Tags  # isort: skip

LANGUAGE = "content_language"
BLOCK = 1 << 20
"""Rows that are counted at once."""


def known_markets(examples: Examples) -> np.ndarray:
    """bool[M]: markets with a wanted outcome in the training part."""
    return examples.popularity.any(axis=1)


def fill_unseen(model: tf.keras.Model, data: TrainingSet, forgotten: Collection[str] = ()) -> None:
    """Give the embeddings that training never touched a meaning, in place.

    They are as they were drawn, which is noise. A market without training outcomes becomes the mean of its
    neighbours (`market.neighbours`), in its gates too, and a language that only such markets speak becomes
    their first ones: training showed contents in it abroad alone, where nobody understands them. Of every
    other domain an id that training never showed, that of unseen values first of all, becomes the mean of
    those it did, weighted by how often.

    Args:
        forgotten: domains of ids that training showed as unseen now and then (`batches.forget_ids`), so that
            it did touch what stands for the unseen; they stay as they are.
    """
    known = known_markets(data.examples)
    codes = UNSEEN + 1 + np.arange(len(known))

    def start_markets(rows: np.ndarray) -> None:
        if known.any():
            rows[codes] = neighbour_shares(data.examples.markets, known) @ rows[codes]

    table = table_of(model)
    rows = table.embeddings.numpy()
    for domain, seen in _shown(data, table).items():
        first = table.first[domain]
        own = rows[first : first + len(seen)]
        if domain == "market":
            start_markets(own)
            seen[codes] = np.where(known, seen[codes], 0)
            unseen = np.isin(np.arange(len(seen)), codes, invert=True) & (seen == 0)
        else:
            unseen = seen == 0
        unseen[0] = False  # padding stands for nothing
        if domain not in forgotten and seen.any():
            own[unseen] = seen @ own / seen.sum()
        if domain == LANGUAGE:
            _translate(own, data, known)
    table.embeddings.assign(rows)
    for layer in model.submodules:
        if isinstance(layer, Gates) and "market" in layer.kernels:
            kernel = layer.kernels["market"].numpy()
            start_markets(kernel)
            layer.kernels["market"].assign(kernel)


def _translate(rows: np.ndarray, data: TrainingSet, known: np.ndarray) -> None:
    """Make contents' languages that are spoken in markets without a log alone their neighbours' first.

    Args:
        rows: float32[ids, D], embeddings of contents' languages, changed in place.
    """
    markets, encoded = data.examples.markets, data.features.content.arrays[LANGUAGE]
    raw = content_frame(data.examples.contents)[LANGUAGE]
    language = np.array([str(code).split("-")[0] for code in raw], object)
    spoken = [[code.split("-")[0] for code in profile(market).languages] for market in markets]
    heard = {code for place in np.flatnonzero(known) for code in spoken[place]}
    shares = neighbour_shares(markets, known)
    for place in np.flatnonzero(~known):
        weights = np.zeros(len(rows))
        for near in np.flatnonzero(shares[place]):
            theirs = encoded[language == spoken[near][0]]
            weights += shares[place, near] * np.bincount(theirs, minlength=len(rows)) / max(len(theirs), 1)
        new = np.unique(encoded[np.isin(language, sorted(set(spoken[place]) - heard))])
        if weights.any():
            rows[new[new > UNSEEN]] = weights @ rows / weights.sum()


def _shown(data: TrainingSet, table: EmbeddingTable) -> dict[str, np.ndarray]:
    """How often training showed each id, int64[ids] by domain."""
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
    return {name: count for name, count in shown.items() if name in table.first}
