"""What contents are worth in a market: by the ranker, in the mean of some of its people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensemble.cascade import Cascade
from ensemble.distil import BATCH, queries_of, ranked
from ensemble.release import Release, ReleaseWriter
from models.batches import TrainingSet
from models.two_tower import encode
from models.unseen import market_shares
from workflows.examples import TRAIN, Examples

FILE = "worth.npy"
PEOPLE = 16
"""Requests of a market whose values are averaged. With 8, 16 and 64 the default world's slates were worth the
same."""
BLOCK = 2048
"""Contents that are ranked for all of these at once."""


def with_worth(draft: Release, target: Path, data: TrainingSet, two_tower: Any, seed: int) -> Release:
    """Write the release `draft` again at `target`, with what its ranker says that contents are worth."""
    worth = market_worth(draft, data, two_tower, seed)
    with ReleaseWriter(target, name=draft.name, info=draft.info) as release:
        release.link(draft, but={FILE})
        release.array(FILE, worth)
    return Release.open(target)


def market_worth(release: Release, data: TrainingSet, two_tower: Any, seed: int) -> np.ndarray:
    """Mean value of each content to people of each market (USD), float32[M, N]; NaN where it is not sold, or
    had ended when the models' rows did. What is sold out by the end of the log may come again, and has one.

    The ranker is asked at that moment for the people of drawn training queries, with the histories they had
    then. For a market without a log they are of its neighbours, and its contents are ranked as it reads them.
    """
    examples = data.examples
    vectors, ended_at = release.array("content_vectors.npy"), release.array("ended_at.npy")
    cascade = Cascade(release, threads=2)
    cascade.retrieval.moments = examples.moments
    now = max(examples.learned_until, 0)
    worth = np.full(examples.available.shape, np.nan, np.float32)
    shares, random = market_shares(examples), np.random.default_rng(seed)
    for market, shelf in enumerate(cascade.retrieval.shelves):
        rows = _drawn_queries(examples, shares[market], random)
        asked = queries_of(data, rows, encode(two_tower.query_encoder, data.query_arrays(rows), BATCH))
        asked |= {"market_index": np.full(len(rows), market), "time": np.full(len(rows), now)}
        running = shelf.rows[ended_at[shelf.rows] > now]
        for start in range(0, len(running), BLOCK):
            some = running[start : start + BLOCK]
            candidates = some[None].repeat(len(rows), axis=0)
            made = ranked(cascade, vectors, asked, candidates)
            value = cascade.blend(made["probabilities"], candidates, made["market_index"])
            worth[market, some] = value.mean(axis=0)
    return worth


def _drawn_queries(examples: Examples, shares: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """At most `PEOPLE` training queries, int64[*] ascending, of markets by their shares float64[M]; of any
    market where none of these has a query."""
    every = examples.queries.rows(TRAIN)
    market = examples.queries.market[every]
    chance = (shares / np.maximum(np.bincount(market, minlength=len(shares)), 1))[market]
    if not chance.any():
        chance = np.ones(len(market))
    count = min(PEOPLE, np.count_nonzero(chance))
    return every.start + np.sort(random.choice(len(market), count, replace=False, p=chance / chance.sum()))
