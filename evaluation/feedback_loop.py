"""What feedback is worth in the simulated world: a release serves and learns from what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ensemble.build import BuildConfig, Built, build_release
from evaluation.adaptation import kept
from evaluation.closed_loop import Asked, Player, Requests, held_out_requests, outcomes, play, requests_of
from evaluation.runs import Row
from feedback.extend import extend
from feedback.log import FeedbackLog
from feedback.records import outcome, parse, shown
from market.dataset import Dataset, write_like
from market.folders import remove
from market.world import World, WorldConfig
from market.world.behaviour import Outcomes
from market.world.world import ORDERED
from models.training import Progress, quiet
from supply.events import EVENT_KINDS
from supply.events import parse as parse_event
from workflows.examples import Examples, build_examples

FIRST, OWN, GREEDY, WORLDS = (
    "first release",
    "learned from its own slates",
    "learned from its own slates without exploration",
    "learned from the world's feed",
)
SERVED = 0.4
"""Part of a log, before its test part, in which the first release serves."""
REPORTED = 0.01
"""Part of the log that a build here keeps for its own report: the test days come after all that it reads."""


def feedback_loop(
    world: WorldConfig,
    config: BuildConfig,
    folder: Path,
    *,
    requests: int,
    seed: int,
    progress: Progress = quiet,
    step: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Play the test days of a world with a release of its first days, and with those that learned since.

    The first release learns from the first half of the log and serves the people of the days from there to
    the test part. What they do with its slates goes through records, the feedback log and `feedback.extend`,
    and the same build learns from the data set that comes of it. Beside it stand a release that learned from
    what the first one did without exploration, and one that learned from the world's own feed of these days.
    All are played with what people did while the first release served as their past, so what is compared is
    what models and statistics learned, not what they know of a person's last days.

    Args:
        folder: where data sets, logs and builds go; what a killed run of the same world left is taken up.
        requests: at most so many of the test days (requests).
        seed: of the choice of requests.

    Returns:
        Rows of `evaluation.closed_loop.play`, the first release first.

    Raises:
        ValueError: the test part leaves the first release nothing to learn from.
    """
    if config.split.test_fraction + SERVED >= 1:
        raise ValueError(
            f"[build.split] test_fraction = {config.split.test_fraction} leaves nothing to learn from before "
            f"the {SERVED:.0%} of the log in which the first release serves; give less than {1 - SERVED:g}"
        )
    played = World(world)
    folder.mkdir(parents=True, exist_ok=True)
    made_of = json.dumps(asdict(world))
    step("log")
    whole = kept(folder / "data", made_of, partial(played.write, folder / "data", overwrite=True))
    everything = build_examples(
        whole,
        folder / "examples",
        history_length=config.features.history_length,
        seen_length=config.features.seen_length,
        split=config.split,
    )
    config = replace(config, split=replace(config.split, test_fraction=REPORTED))
    asked = held_out_requests(everything, requests, seed=seed)
    times = np.asarray(everything.queries.time)
    begin = int(np.quantile(times, (times < asked.begin).mean() - SERVED))

    def days(name: str, end: int) -> Dataset:
        return kept(folder / name, f"{made_of} {end}", partial(until, whole, end, folder / name))

    first_days = days("first-days", begin)
    built = {FIRST: build_release(first_days, folder / "first", config, progress=progress, step=step)}
    between = np.flatnonzero((begin <= times) & (times < asked.begin))
    served = requests_of(everything, between, begin)
    for name, place, explores in ((OWN, "own", True), (GREEDY, "greedy", False)):
        step(f"serve, {place}")
        player = Player(built[FIRST].release, moments_of(everything, built[FIRST]), played, begin, seed=seed)
        if not explores:
            player.reorder_with(explore=0.0)
        remove(folder / f"{place}.log")
        serve(player, served, FeedbackLog(folder / f"{place}.log"), end=asked.begin)
        grown, _ = extend(
            first_days,
            folder / f"{place}.log",
            folder / f"{place}-days",
            wait_s=0,
            until=asked.begin,
            overwrite=True,
        )
        built[name] = build_release(grown, folder / place, config, progress=progress, step=step)
    more = days("world-days", asked.begin)
    built[WORLDS] = build_release(more, folder / "world", config, progress=progress, step=step)
    step("play")
    past = moments_of(everything, built[OWN])
    policies = {
        name: Player(one.release, past, played, asked.begin, seed=seed).cascade_slate
        for name, one in built.items()
    }
    return play(played, policies, asked, data_set="world", seed=seed)


def until(dataset: Dataset, end: int, path: Path) -> Dataset:
    """A data set as it was at a time; its users and contents stay."""
    moments = dataset.moments()
    return write_like(
        dataset,
        path,
        impressions=(part[part["time"] < end] for part in dataset.impression_parts()),
        moments=None if moments is None else moments[moments["time"] < end],
        overwrite=True,
    )


def moments_of(everything: Examples, built: Built) -> Examples:
    """What a release was built of, with the rooms of all days: their people hang on no policy."""
    return replace(built.data.examples, moments=everything.moments)


def serve(player: Player, requests: Requests, log: FeedbackLog, *, end: int) -> None:
    """Serve requests, and have what was shown, what came of it and what happened in rooms taken into a log.

    Args:
        end: the time until which rooms are told of (s since the epoch).
    """
    numbers, orders = iter(range(len(requests))), []
    drawn = np.zeros(0)

    def policy(asked: Asked) -> np.ndarray:
        nonlocal drawn
        slates, drawn = player.served(asked)
        return slates

    def told(asked: Asked, slates: np.ndarray, real: Outcomes) -> None:
        texts = []
        for row, user in enumerate(player.user_id[asked.user]):
            time, places = int(asked.time[row]), np.flatnonzero(slates[row] >= 0).tolist()
            content = player.content_id[slates[row]]
            items = [
                {"content": content[p], "position": p, "propensity": float(drawn[row, p])} for p in places
            ]
            number = next(numbers)
            texts.append(shown(number, user, asked.market[row], time, items))
            for place in places:
                came = {f.name: getattr(real, f.name)[row, place].item() for f in fields(Outcomes)}
                if came := {name: value for name, value in came.items() if value}:
                    texts.append(outcome(number, user, time, content[place], time, **came))
                if came.get("order"):
                    orders.append((content[place], time))
        log.append([parse(json.dumps(text), end) for text in texts])

    outcomes(player.world, policy, requests, told)
    said = rooms(player.world, orders, requests.begin, end)
    log.append([parse_event(json.dumps(event), end) for event in said])


def rooms(world: World, orders: list[tuple[str, int]], begin: int, end: int) -> list[dict]:
    """What happens in a world's rooms and to its stock within a time, as events, with these orders."""
    sold = pd.DataFrame(orders, columns=ORDERED).sort_values("time", kind="stable")
    said = world.moments(sold)
    said = said[(said["time"] >= begin) & (said["time"] < end)]
    events = []
    for name in ("viewers", "showing", "stock"):
        key = EVENT_KINDS[name].value
        some = said[said[name].notna()]
        whole = some[name] if name == "showing" else some[name].astype(int)
        events += [
            {"event": name, "content": content, "time": time, key: value}
            for content, time, value in zip(some["content_id"], some["time"].tolist(), whole.tolist())
        ]
    return events
