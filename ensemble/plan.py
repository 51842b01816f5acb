"""What a release says about its cascade: sizes, weights, columns. `cascade.json`, read into dataclasses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ensemble.release import Release
from market.kinds import KINDS
from market.knobs import expect
from market.profiles import KNOWN, is_market
from supply.fatigue import FatigueConfig

FILE = "cascade.json"

#: Tasks whose outcome is worth a part of the content's price.
PRICED = ("cart", "order")

#: Default worth of every task that a ranker may learn.
WEIGHTS = {
    "relevant": 1.0,
    "click": 0.1,
    "watch": 0.1,
    "like": 0.2,
    "follow": 0.3,
    "long_view": 0.1,
    "cart": 0.25,
    "order": 1.0,
    "negative": -1.0,
}

#: Default quota of every retrieval channel, where so many are retrieved.
QUOTAS = {
    "two_tower": 60,
    "item_graph": 120,
    "trending": 60,
    "fresh": 80,
    "live": 40,
    "followed": 20,
    "cart": 20,
    "worth": 100,
}


#: Rules of the slate, by name; `ensemble.rules` has a file for each.
LIMITS = ("frequency_cap", "seller_cap", "category_cap", "slots")
DIVERSITIES = ("mmr", "dpp")
RULES = (*LIMITS, *DIVERSITIES, "exploration")
MOST = 1e9
"""Weights and prices lie within this, so that a value is never more than a float32 holds."""
MOST_LIMITS = 15
"""Limits of a slate, each slot one and the frequency cap two, of contents and of sellers: re-ordering has a
bit for each in a uint16, all 16 mark what is gone."""


@dataclass(frozen=True)
class Slot:
    """How many places of a kind a slate holds: at most `most` and at least `least` among the first `within`,
    0 for all; None declares nothing."""

    kind: str
    most: int | None = None
    within: int = 0
    least: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"cascade.slots has kind {self.kind!r}; there are {', '.join(KINDS)}")
        if self.most is None and self.least is None:
            raise ValueError(f"cascade.slots says nothing of {self.kind}; give most, least, or both")
        if (self.most or 0) < 0 or self.within < 0:
            raise ValueError(
                f"cascade.slots: most {self.most} and within {self.within} of {self.kind} must be at least 0"
            )
        if self.least is not None and self.least < 1:
            raise ValueError(f"cascade.slots: least {self.least} of {self.kind} must be at least 1")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(
                f"cascade.slots: least {self.least} of {self.kind} must not be more than most {self.most}"
            )


@dataclass(frozen=True)
class CascadeConfig:
    """Knobs of the served cascade.

    Attributes:
        retrieved: contents that the channels bring for each request (contents).
        candidates: of these, contents that pre-ranking leaves for the ranker (contents).
        category_share: of the candidates, what one category may take while others have any (above 0 to 1).
        quotas: of those retrieved, as many as each channel may fill before the others take what is left, by
            channel; in all at most `retrieved`. A channel without one has its default, or where the defaults
            are more than is left for them its share of that (contents).
        trending_half_life_h: age at which a wanted outcome counts half for the trending channel, where a data
            set is cut by time (hours).
        trending_prior: what a market borrows from its region, and a region from the world, weighs as much as
            so many of its own outcomes (outcomes).
        fresh_exposures: contents shown at most so often in a market are fresh there (exposures).
        pool: contents that re-ordering chooses from, the best-valued that leave room for others where a cap
            asks for them (contents).
        slate: places in a reply (contents).
        rules: rules of the slate. Where not all caps can hold the later ones in this list yield first. There
            are frequency_cap, seller_cap, category_cap, slots, one of mmr and dpp, and exploration.
        seller_cap: places one seller may take in a slate (contents).
        category_cap: places one category may take in a slate (contents).
        content_frequency: times a content may have been shown lately (exposures).
        seller_frequency: times a seller's contents may have been shown lately (exposures).
        slots: most or least places of a kind within the first places of a slate, such as
            { kind = "product", most = 1, within = 3 } or { kind = "live", least = 1, within = 5 }; without
            `within`, of the whole slate. The least must fit into the places that are not for exploration, and
            a slate must be able to keep all slots.
        explore: share of the places, the last ones, given to contents of uncertain value (0 to 0.5).
        explore_outcomes: a content wanted fewer times lately is of uncertain value (outcomes).
        weights: worth of a certain outcome, by task: US dollars; of cart and order, parts of the content's
            price. A task without one has its default; 0 switches it off.
        weights_for: other weights for a kind, a market or a kind in a market, such as
            { live = { watch = 0.1 }, ID = { order = 0.5 }, "ID.live" = { order = 0.7 } }; the last of these
            goes before the second, the second before the first.
        price_usd: price of a content without one (US dollars).
        fatigue: when a user has been shown something too often.
    """

    retrieved: int = 500
    candidates: int = 100
    category_share: float = 0.15
    quotas: Mapping[str, int] = field(default_factory=dict)
    trending_half_life_h: float = 48.0
    trending_prior: float = 100.0
    fresh_exposures: int = 20
    pool: int = 60
    slate: int = 10
    rules: tuple[str, ...] = (*LIMITS, "dpp", "exploration")
    seller_cap: int = 2
    category_cap: int = 6
    content_frequency: int = 2
    seller_frequency: int = 3
    slots: tuple[Slot, ...] = ()
    explore: float = 0.1
    explore_outcomes: int = 5
    weights: Mapping[str, float] = field(default_factory=dict)
    weights_for: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    price_usd: float = 20.0
    fatigue: FatigueConfig = field(default_factory=FatigueConfig)

    def __post_init__(self) -> None:
        counts = "seller_cap category_cap content_frequency seller_frequency explore_outcomes"
        expect(self, "cascade", f"retrieved candidates pool slate {counts}", least=1)
        expect(self, "cascade", "trending_half_life_h trending_prior", above=0)
        expect(self, "cascade", "category_share", above=0, most=1)
        expect(self, "cascade", "fresh_exposures", least=0)
        expect(self, "cascade", "price_usd", least=0, most=MOST)
        expect(self, "cascade", "explore", least=0, most=0.5)
        if not self.slate <= self.pool <= self.candidates <= self.retrieved:
            raise ValueError(
                f"cascade: slate {self.slate} <= pool {self.pool} <= candidates {self.candidates} <= "
                f"retrieved {self.retrieved} must hold"
            )
        self._check_weights()
        object.__setattr__(self, "weights", WEIGHTS | dict(self.weights))
        self._check_rules()
        object.__setattr__(self, "quotas", self._all_quotas())

    def _all_quotas(self) -> dict[str, int]:
        """The quotas that are declared and, in what these leave, those of the other channels."""
        for channel, quota in self.quotas.items():
            if channel not in QUOTAS:
                raise ValueError(f"cascade.quotas has {channel!r}; there are {', '.join(QUOTAS)}")
            if quota < 0:
                raise ValueError(f"cascade.quotas.{channel} is {quota}; it must be at least 0")
        left = self.retrieved - sum(self.quotas.values())
        if left < 0:
            raise ValueError(
                f"cascade.quotas add up to {self.retrieved - left}, but only {self.retrieved} are retrieved, "
                "so the last channels would bring nothing; lower quotas, remove those that may be what the "
                f"others leave, or raise cascade.retrieved to {self.retrieved - left}"
            )
        usual = sum(quota for channel, quota in QUOTAS.items() if channel not in self.quotas)
        return {
            channel: self.quotas.get(channel, quota if usual <= left else quota * left // usual)
            for channel, quota in QUOTAS.items()
        }

    def _check_weights(self) -> None:
        for scope in self.weights_for:
            market, *kind = scope.split(".", 1)
            if scope not in KINDS and not (is_market(market) and set(kind) <= set(KINDS)):
                raise ValueError(
                    f"cascade.weights_for has {scope!r}; write a kind ({', '.join(KINDS)}), a market "
                    f"({KNOWN}), or both, such as 'ID.live'"
                )
        for name, weights in (
            ("weights", self.weights),
            *((f"weights_for.{scope}", weights) for scope, weights in self.weights_for.items()),
        ):
            for task, weight in weights.items():
                if task not in WEIGHTS:
                    raise ValueError(f"cascade.{name} has {task!r}; there are {', '.join(WEIGHTS)}")
                if not math.isfinite(weight):
                    raise ValueError(f"cascade.{name}.{task} is {weight}; it must be a finite number")
                if abs(weight) > MOST:
                    raise ValueError(f"cascade.{name}.{task} is {weight}; it must lie within {MOST:g} of 0")
                if weight * WEIGHTS[task] < 0:
                    sign = "positive" if weight > 0 else "negative"
                    raise ValueError(f"cascade.{name}.{task} is {weight}; it must not be {sign}")

    def _check_rules(self) -> None:
        for rule in self.rules:
            if rule not in RULES:
                raise ValueError(f"cascade.rules has {rule!r}; there are {', '.join(RULES)}")
        if len(set(self.rules)) < len(self.rules):
            raise ValueError(f"cascade.rules {', '.join(self.rules)} must name each rule once")
        if set(DIVERSITIES) <= set(self.rules):
            raise ValueError("cascade.rules has mmr and dpp; a slate is made diverse by one of them")
        # In a release's plan a slot is a JSON object.
        slots = tuple(slot if isinstance(slot, Slot) else Slot(**slot) for slot in self.slots)
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "rules", tuple(self.rules))
        least = len({slot.kind for slot in slots if slot.least})
        declared = sum(slot.most is not None for slot in slots) + least
        made = dict.fromkeys(LIMITS, 1) | {"frequency_cap": 2, "slots": declared}
        limits = sum(made.get(rule, 0) for rule in self.rules)
        if limits > MOST_LIMITS:
            raise ValueError(
                f"cascade.slots has {len(slots)}, which makes {limits} limits with the other rules; there "
                f"may be {MOST_LIMITS} in all, so declare at most {len(slots) - limits + MOST_LIMITS} slots"
            )
        self.reserved()
        if "slots" in self.rules:
            self._check_slots()

    def _check_slots(self) -> None:
        """Refuse slots that no slate can keep all of, and those that say nothing that others do not."""
        said = set[tuple[str, str, int]]()
        for slot in self.slots:
            within = slot.within or self.slate
            if within > self.slate:
                raise ValueError(
                    f"cascade.slots: within {within} of {slot.kind} goes beyond the {self.slate} places of a "
                    "slate; leave it out where all of them are meant"
                )
            for word in ("most", "least"):
                if getattr(slot, word) is not None and (slot.kind, word, within) in said:
                    raise ValueError(
                        f"cascade.slots says twice how many {slot.kind} there are at {word} among the first "
                        f"{within}; keep one of them"
                    )
                if getattr(slot, word) is not None:
                    said.add((slot.kind, word, within))
        #: By kind, how many of it may stand among the first places, of 1 place to all.
        most = {kind: list(range(1, self.slate + 1)) for kind in KINDS}
        for slot in self.slots:
            if slot.most is not None:
                own = most[slot.kind]
                within = slot.within or self.slate
                own[:within] = [min(count, slot.most) for count in own[:within]]
        for kind, reserved in self.reserved().items():
            for count, place in enumerate(reserved, 1):
                if count > most[kind][place]:
                    raise ValueError(
                        f"cascade.slots ask for {count} {kind} among the first {place + 1}, where they allow "
                        f"{most[kind][place]}; lower least, raise most, or declare what asks for {kind} later"
                    )
        for place in range(self.slate):
            room = {kind: own[place] for kind, own in most.items()}
            if sum(room.values()) <= place:
                told = ", ".join(f"{count} {kind}" for kind, count in room.items())
                raise ValueError(
                    f"cascade.slots leave a place empty among the first {place + 1}: they allow {told}; "
                    "raise the most of a kind, or leave it out"
                )

    def weight(self, task: str, market: str, kind: str) -> float:
        """Worth of an outcome in a market, of a kind of content: of the narrowest declaration there is."""
        weight = self.weights[task]
        for scope in (kind, market, f"{market}.{kind}"):
            weight = self.weights_for.get(scope, {}).get(task, weight)
        return weight

    def without_effect(self, tasks: Sequence[str], markets: Sequence[str], sold: np.ndarray) -> list[str]:
        """What `weights_for` and `slots` declare for a market, a kind or an outcome that there is not, or
        without the rule that reads it, a text for each.

        Args:
            tasks, markets, sold: as `expect_worth` takes them.
        """
        texts = []
        for scope, weights in self.weights_for.items():
            market, _, kind = scope.rpartition(".") if scope in KINDS else scope.partition(".")
            name = f"cascade.weights_for.{json.dumps(scope) if '.' in scope else scope}"
            if market and market not in markets:
                texts.append(f"{name} has no effect: contents are served in {', '.join(markets)} alone")
                continue
            here = [not market or market == code for code in markets]
            if kind and not sold[here, KINDS.index(kind)].any():
                texts.append(
                    f"{name} has no effect: no {kind} is sold {f'in {market}' if market else 'anywhere'}"
                )
                continue
            texts += [
                f"{name}.{task} has no effect: the ranker learned {', '.join(tasks)} alone"
                for task in weights
                if task not in tasks
            ]
        if self.slots and "slots" not in self.rules:
            texts.append("cascade.slots has no effect: cascade.rules does not have slots")
        else:
            texts += [
                f"cascade.slots has no effect for {kind}: no {kind} is sold anywhere"
                for kind in dict.fromkeys(slot.kind for slot in self.slots)
                if not sold[:, KINDS.index(kind)].any()
            ]
        return texts

    def expect_worth(self, tasks: Sequence[str], markets: Sequence[str], sold: np.ndarray) -> None:
        """Refuse weights under which all contents of a market are worth nothing.

        Args:
            tasks: that the ranker learns.
            markets: codes.
            sold: bool[M, 3], whether each market sells any content of each of `KINDS`.

        Raises:
            ValueError: names the market, what was learned and what to declare.
        """
        for market, has in zip(markets, sold.tolist()):
            kinds = [kind for kind, any_ in zip(KINDS, has) if any_]
            if kinds and not any(self.weight(task, market, kind) > 0 for task in tasks for kind in kinds):
                raise ValueError(
                    f"under cascade.weights and cascade.weights_for nothing in {market} is worth showing, so "
                    f"its slates would be in no order: the ranker learns {', '.join(tasks)}, and for what is "
                    f"sold there ({', '.join(kinds)}) none of these has a positive weight; give one of them "
                    "a positive weight and build again"
                )

    def reserved(self) -> dict[str, list[int]]:
        """By kind, the places that slots with `least` keep for it, ascending; the best may stand sooner.

        They are the last ones that do, none of them one for exploration and none of two kinds; where kinds
        contend the sooner declared one has the sooner place.

        Raises:
            ValueError: there are not so many.
        """
        size, asked = self.slate - self.explored, [slot for slot in self.slots if slot.least]
        due = {}
        for kind in dict.fromkeys(slot.kind for slot in asked) if "slots" in self.rules else ():
            own = [(slot.least or 0, min(slot.within or size, size)) for slot in asked if slot.kind == kind]
            counts = range(1, max(least for least, _ in own) + 1)
            due[kind] = [min(within for least, within in own if least >= count) for count in counts]
        places: dict[str, list[int]] = {kind: [] for kind in due}
        for place in reversed(range(size)):
            pending = [kind for kind, places_due in due.items() if places_due and places_due[-1] > place]
            if pending:
                due[pending[-1]].pop()
                places[pending[-1]].insert(0, place)
        if lacking := {kind: len(left) for kind, left in due.items() if left}:
            told = ", ".join(f"{count} of {kind}" for kind, count in lacking.items())
            raise ValueError(
                f"cascade.slots ask for more than fits: {told} lack a place among the first of {self.slate}, "
                f"of which {self.explored} are for exploration; lower least or explore, or widen within"
            )
        return places

    @property
    def explored(self) -> int:
        """Places of a slate that exploration fills, the last ones."""
        return int(self.explore * self.slate + 1e-9) if "exploration" in self.rules else 0


def as_declared(config: Any) -> dict[str, Any]:
    """A dataclass as a dictionary without what is None, which declares nothing."""
    return asdict(config, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})


@dataclass(frozen=True)
class QueryColumn:
    """A raw query column as the compiled workflow reads it.

    Attributes:
        kind: "string", "integer" or "number".
        source: "user" (a column of the user table), "context" (the moment), "history" (the content column of
            the same name, followed through the history) or "request".
    """

    name: str
    kind: str
    source: str


@dataclass(frozen=True)
class Plan:
    """All that the stages need to know beside arrays.

    Attributes:
        markets: codes; everything that is "by market" is in this order.
        tasks: of the ranker, in the order of its output.
        history_length: events of the past that a query carries.
        dim: size of the query and content vectors.
        query_ids, query_lists, query_numbers, content_ids, content_numbers: widths of the packed tensors;
            `content_numbers` counts the pair features too.
        as_of: end of the log that the release was built from (s since the epoch); 0 where it had no time.
        learned_until: first second after the rows that its models were trained and chosen by, where the log
            is cut by time; else `as_of` (s since the epoch).
        split: how that log was cut, see `market.tables.Split`; "" in older releases.
        ranking_reads: what the ranking graph reads beside encoded features: of `candidates` and `recent`,
            rows of the contents table, `retrieval_score`, `market_affinity`, `low_rank_affinity` and
            `conversion`.
        recency: of the item graph, see `market.item_graph.ItemGraph`.
        season_s: half the length of a season (s); 0 where the release knows none.
    """

    markets: tuple[str, ...]
    tasks: tuple[str, ...]
    columns: tuple[QueryColumn, ...]
    history_length: int
    dim: int
    query_ids: int
    query_lists: int
    query_numbers: int
    content_ids: int
    content_numbers: int
    as_of: int
    config: CascadeConfig
    ranking_reads: tuple[str, ...] = ()
    recency: float = 0.0
    season_s: int = 0
    learned_until: int = 0
    split: str = ""

    def to_json(self) -> dict[str, Any]:
        return as_declared(self)

    @classmethod
    def of(cls, release: Release) -> Plan:
        """The plan of a release."""
        body = release.json(FILE)
        # Older releases leave out what counts 0.
        weights = dict.fromkeys(WEIGHTS, 0.0) | body["config"]["weights"]
        return cls(
            **{
                **body,
                "learned_until": body.get("learned_until", body["as_of"]),
                "markets": tuple(body["markets"]),
                "tasks": tuple(body["tasks"]),
                "ranking_reads": tuple(body["ranking_reads"]),
                "columns": tuple(QueryColumn(**column) for column in body["columns"]),
                "config": CascadeConfig(
                    **body["config"]
                    | {"weights": weights, "fatigue": FatigueConfig(**body["config"]["fatigue"])}
                ),
            }
        )
