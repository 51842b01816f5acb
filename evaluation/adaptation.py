"""What adaptation to markets is worth: beside the release, one that is blind to them and one for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ensemble.build import BuildConfig, Built, build_release, fingerprint
from evaluation.closed_loop import Asked, Player, Policy
from market.dataset import Dataset, write_like
from market.statistics import EventCounts
from market.world import World
from models.batches import PairPopularity, TrainingSet
from models.training import Progress, quiet
from workflows.examples import Examples

MUCH = 1e9
"""Outcomes of a prior that leaves nothing of a market's own."""
ENDLESS = 1e30
"""The same of shares so small that the outcomes of a log would still tell among the digits beside `MUCH`."""


def kept(path: Path, made_of: str, make: Callable[[], Dataset]) -> Dataset:
    """The data set at `path` where the file beside it says that it was made of the same; else `make()`.

    Args:
        path: folder of the data set; `make` replaces what stands there.
        made_of: a text that changes with all that the data set is made of.
    """
    mark = path.with_name(f"{path.name}.made-of")
    if path.exists() and mark.exists() and mark.read_text() == made_of:
        return Dataset.open(path)
    mark.unlink(missing_ok=True)
    made = make()
    mark.write_text(made_of)
    return made


def select_markets(
    dataset: Dataset, markets: tuple[str, ...], path: Path, overwrite: bool = False
) -> Dataset:
    """The data set with the impressions of some markets alone; its users and contents stay.

    Of what was told of moments, stock is as if the others had ordered nothing; see `without_orders`.

    Args:
        overwrite: replace a data set that is there.

    Raises:
        ValueError: the data set lacks one of them.
    """
    for market in markets:
        if market not in dataset.markets:
            raise ValueError(
                f"no market {market!r} in {dataset.name}; there are {', '.join(dataset.markets)}"
            )
    impressions, moments = dataset.impressions(), dataset.moments()
    stays = impressions["market"].isin(markets)
    if moments is not None:
        moments = without_orders(moments, impressions[~stays])
    return write_like(dataset, path, impressions=[impressions[stays]], moments=moments, overwrite=overwrite)


def without_orders(moments: pd.DataFrame, gone: pd.DataFrame) -> pd.DataFrame:
    """Statements of moments as if some impressions had never been.

    What was told of a content's stock in the second of an order that is gone came of it and is gone too; what
    was told later has its piece more. Where the log names no orders or no times, nothing tells whose a
    statement is, and all of stock are gone.

    Args:
        moments: as `Dataset.moments`.
        gone: the impressions.
    """
    if "stock" not in moments or not len(gone):
        return moments
    if "order" not in gone or "time" not in gone:
        return moments.drop(columns="stock")
    orders = gone.loc[gone["order"].fillna(0) > 0, ["content_id", "time"]]
    index = pd.Index(moments["content_id"].unique())
    orders = orders[orders["content_id"].isin(index)]
    said = moments[moments["stock"].notna()].sort_values("time", kind="stable")
    place, time = index.get_indexer(said["content_id"]), said["time"].to_numpy(np.int64)
    counts = EventCounts(
        np.zeros(len(orders), np.int64),
        index.get_indexer(orders["content_id"]),
        orders["time"].to_numpy(np.int64),
        len(index),
        window_s=1 << 40,
        after_s=1,
    )
    before = counts.in_market(np.zeros(len(said), np.int64), place, time)
    counts.window_s = 0
    now = counts.in_market(np.zeros(len(said), np.int64), place, time)
    # Of one second the last statement holds, so the first ones go.
    kept = said.groupby(["content_id", "time"]).cumcount().to_numpy() >= now
    made = moments.copy()
    made.loc[said.index, "stock"] = (said["stock"] + before.astype(np.int64)).where(kept)
    told = [column for column in moments if column not in ("content_id", "time")]
    return made.dropna(subset=told, how="all").reset_index(drop=True)


@dataclass(frozen=True)
class BlindPopularity(PairPopularity):
    """Popularity in the world, an equal part of it for each market."""

    def __call__(
        self, market: np.ndarray, content: np.ndarray, time: np.ndarray, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        world = super().__call__(market, content, time, own)[1]
        return world / len(self.totals), world


def blind(data: TrainingSet) -> TrainingSet:
    """What a model sees that is not told the market: no such column, the world's popularity and prices.

    The moment stays local, and people keep their languages: both are known without a market.
    """
    query = data.features.query
    seen = replace(
        query,
        schema=query.schema.excluding_by_name(["market"]),
        arrays={name: array for name, array in query.arrays.items() if name != "market"},
    )
    offers = data.offers
    # What is usual nowhere stays unknown.
    known = ~np.isnan(offers.usual)
    usual = np.nansum(offers.usual, axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    return replace(
        data,
        features=replace(data.features, query=seen),
        popularity=BlindPopularity(data.popularity.totals, data.popularity.events),
        latest=np.broadcast_to(data.latest.mean(axis=0), data.latest.shape).copy(),
        offers=replace(
            offers,
            power=np.full_like(offers.power, offers.power.mean()),
            usual=np.tile(usual.astype(np.float32), (len(offers.power), 1)),
        ),
    )


def build_blind(
    dataset: Dataset,
    folder: Path,
    config: BuildConfig,
    *,
    progress: Progress = quiet,
    step: Callable[[str], None] = lambda name: None,
) -> Built:
    """One release for all markets that does not tell them apart; what each sells it still knows."""
    flat = replace(
        config,
        calibration=replace(config.calibration, shrinkage=MUCH),
        cascade=replace(config.cascade, trending_prior=ENDLESS),
    )
    return build_release(dataset, folder, flat, see=blind, progress=progress, step=step)


def build_alone(
    dataset: Dataset,
    folder: Path,
    config: BuildConfig,
    *,
    progress: Progress = quiet,
    step: Callable[[str], None] = lambda name: None,
) -> dict[str, Built]:
    """A release for each market, from its own log alone, by market."""
    folder.mkdir(parents=True, exist_ok=True)
    source, made = fingerprint(dataset), {}
    for market in dataset.markets:
        path = folder / f"data-{market}"
        data = kept(path, source, partial(select_markets, dataset, (market,), path, overwrite=True))
        step(f"{market} alone")
        made[market] = build_release(data, folder / market, config, progress=progress)
    return made


def each_its_own(
    releases: Mapping[str, Built], examples: Examples, world: World, begin: int, *, seed: int
) -> Policy:
    """The slates of whichever release is a request's market's, as a policy of `evaluation.closed_loop`."""
    players = {
        market: Player(built.release, examples, world, begin, seed=seed) for market, built in releases.items()
    }

    def slates(asked: Asked) -> np.ndarray:
        made = np.full((len(asked.user), next(iter(players.values())).slate), -1)
        for market in np.unique(asked.market):
            rows = np.flatnonzero(asked.market == market)
            part = Asked(
                asked.user[rows], asked.market[rows], asked.time[rows], asked.clicked[rows], asked.shown[rows]
            )
            made[rows] = players[market].cascade_slate(part)
        return made

    return slates
