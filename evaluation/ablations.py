"""What each part of the cascade is worth: a release with one part left out, played in the world it knows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ensemble.build import BuildConfig, Built, build_release
from ensemble.channels import Channel
from ensemble.release import Release
from evaluation.adaptation import build_alone, build_blind, each_its_own
from evaluation.closed_loop import Player, Policy, Requests, play
from evaluation.replay import ranking_and_ranker
from evaluation.runs import Row
from market.dataset import Dataset
from market.world import World
from models.batches import TrainingSet
from models.training import Progress, quiet
from workflows.examples import Examples

FULL = "cascade"


def no_preranking(player: Player) -> None:
    """The ranker sees all that was retrieved."""
    retrieval = player.retrieval
    config = retrieval.plan.config
    retrieval.preranker = None
    retrieval.plan = replace(retrieval.plan, config=replace(config, candidates=config.retrieved))


def only(channel: Channel) -> Callable[[Player], None]:
    """One retrieval channel brings everything."""

    def change(player: Player) -> None:
        player.retrieval.channels = {channel: player.retrieval.channels[channel]}

    return change


def without(channel: Channel) -> Callable[[Player], None]:
    """All retrieval channels but one."""

    def change(player: Player) -> None:
        kept = {key: source for key, source in player.retrieval.channels.items() if key != channel}
        player.retrieval.channels = kept

    return change


def no_calibration(player: Player) -> None:
    """Probabilities as the ranker says them."""
    ranking = ranking_and_ranker(player.release, threads=1)

    def ranker(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": ranking(**inputs)["ranker_probabilities"]}

    player.cascade.run["ranking"] = ranker


def no_diversity(player: Player) -> None:
    """The slate in the order of value, caps aside."""
    player.diversity = 0.0


def no_variety(player: Player) -> None:
    """The slate in the order of value, caps and all."""
    rules = player.cascade.reordering.plan.config.rules
    player.reorder_with(rules=tuple(rule for rule in rules if rule == "exploration"))


ABLATIONS: Mapping[str, Callable[[Player], None]] = {
    "no pre-ranking, all ranked": no_preranking,
    "two-tower channel alone": only(Channel.TWO_TOWER),
    "item graph channel alone": only(Channel.ITEM_GRAPH),
    "trending channel alone": only(Channel.TRENDING),
    **{f"without {str(c.name).lower().replace('_', ' ')}": without(c) for c in Channel},
    "no calibration": no_calibration,
    "caps alone, no diversity by vectors": no_diversity,
    "no re-ordering diversity": no_variety,
}


def without_moments(examples: Examples) -> Examples:
    """Examples to whose models nobody says what happens in a room: viewers, the product shown, how long it
    has been open. The stock of products stays known, and so does which contents are rooms."""
    moments = copy.copy(examples.moments)
    moments.room = np.zeros_like(moments.room)
    return replace(examples, moments=moments)


def blind_to_moments(data: TrainingSet) -> TrainingSet:
    """The training set of such examples, for `ensemble.build.build_release`."""
    return replace(data, examples=without_moments(data.examples))


def ablate(
    release: Release,
    examples: Examples,
    world: World,
    requests: Requests,
    *,
    seed: int,
    others: Mapping[str, Policy] | None = None,
) -> list[Row]:
    """Rows of `evaluation.closed_loop.play` for the whole cascade and for every ablation of it.

    Of each ablation "expected value (USD) over cascade" is the difference, request by request, with the
    interval that says whether the part matters.

    Args:
        seed: of what exploration draws.
        others: policies beside the ablations, by name, such as those of `evaluation.adaptation`.
    """

    def player(change: Callable[[Player], None] | None = None) -> Player:
        made = Player(release, examples, world, requests.begin, seed=seed)
        if change:
            change(made)
        return made

    policies = {FULL: player().cascade_slate}
    policies |= {name: player(change).cascade_slate for name, change in ABLATIONS.items()}
    policies |= others or {}
    return play(world, policies, requests, data_set=examples.name, seed=seed)


def ablate_training(
    built: Built,
    dataset: Dataset,
    world: World,
    requests: Requests,
    config: BuildConfig,
    folder: Path,
    *,
    markets: bool,
    seed: int,
    progress: Progress = quiet,
    step: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Rows of `ablate` for a build and for others of the same data set and seed that lack what only training
    can leave out: "without the moments of rooms", "no market adaptation", "one model a market".

    Args:
        config: that `built` was built with.
        folder: where the others are built.
        markets: whether to build the last two.
        seed: of what exploration draws; of trainings that are compared the same. The rows have the builds'.
    """
    player = partial(Player, world=world, begin=requests.begin, seed=seed)
    examples = built.data.examples
    step("rooms without their moments")
    untold = build_release(dataset, folder / "rooms", config, see=blind_to_moments, progress=progress)
    told_nothing = player(untold.release, without_moments(examples))
    others: dict[str, Policy] = {"without the moments of rooms": told_nothing.cascade_slate}
    if markets:
        blind = build_blind(dataset, folder / "blind", config, progress=progress, step=step)
        own = build_alone(dataset, folder / "alone", config, progress=progress, step=step)
        others["no market adaptation"] = player(blind.release, examples).cascade_slate
        others["one model a market"] = each_its_own(own, examples, world, requests.begin, seed=seed)
    step("play, once for each ablation")
    rows = ablate(built.release, examples, world, requests, seed=seed, others=others)
    return [replace(row, seed=config.seed) for row in rows]
