"""What a market is worth that training never saw, in the simulated world, beside itself with its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from ensemble.build import BuildConfig, build_release, fingerprint
from evaluation.adaptation import kept, select_markets
from evaluation.closed_loop import Player, Requests, held_out_requests, play
from evaluation.runs import Row
from market.world import World, WorldConfig
from models.training import Progress, quiet


def cold_market(
    world: WorldConfig,
    market: str,
    config: BuildConfig,
    folder: Path,
    *,
    requests: int,
    seed: int,
    progress: Progress = quiet,
    step: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Play the test days of one market with a release that had its log, and with one that had not.

    Policies: "region's popularity", which is what the market's neighbours wanted and the market sells; "with
    its log"; "cold", built without the market's log, each user's history being read when a feed is asked for;
    and "cold, no histories", where nothing at all is known but what people click in the play.

    Args:
        folder: where the data sets and builds go; what a killed run of the same world left is taken up.
        requests: at most so many (requests); the market's own on the test days.
        seed: of the choice of requests.
    """
    if market not in world.markets:
        raise ValueError(f"no market {market!r} in the world; there are {', '.join(world.markets)}")
    if world.markets == (market,):
        raise ValueError(f"{market} is the only market of the world; there is nobody to learn from")
    played = World(world)
    folder.mkdir(parents=True, exist_ok=True)
    path, path_without = folder / "data", folder / f"data-without-{market}"
    others = tuple(code for code in world.markets if code != market)
    data = kept(path, json.dumps(asdict(world)), partial(played.write, path, overwrite=True))
    make = partial(select_markets, data, others, path_without, overwrite=True)
    without = kept(path_without, fingerprint(data), make)
    full, cold = (
        build_release(dataset, folder / build, config, progress=progress, step=step)
        for dataset, build in ((data, "full"), (without, f"without-{market}"))
    )
    examples = full.data.examples
    everyone = held_out_requests(examples, len(examples.queries), seed=seed)
    here = np.flatnonzero(everyone.market == market)
    # Whole people, since their clicks come back: the first ones of a drawn order.
    turn = np.random.default_rng(seed).permutation(len(examples.users))[everyone.user[here]]
    here = np.sort(here[np.argsort(turn, kind="stable")[:requests]])
    asked = Requests(everyone.user[here], everyone.market[here], everyone.time[here], everyone.begin)
    step("play")
    known, stranger, own = (
        Player(built.release, histories, played, asked.begin, seed=seed)
        for built, histories in ((cold, examples), (cold, cold.data.examples), (full, examples))
    )
    return play(
        played,
        {
            "region's popularity": known.popularity,
            "with its log": own.cascade_slate,
            "cold": known.cascade_slate,
            "cold, no histories": stranger.cascade_slate,
        },
        asked,
        data_set="world",
        seed=seed,
    )
