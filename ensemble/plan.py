"""What a release says about its cascade: sizes, weights, columns. `cascade.json`, read into dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ensemble.release import Release

FILE = "cascade.json"

#: Default worth of every task that a ranker may learn.
WEIGHTS = {
    "relevant": 1.0,
    "click": 1.0,
    "watch": 1.0,
    "like": 2.0,
    "follow": 3.0,
    "long_view": 1.0,
    "cart": 5.0,
    "order": 20.0,
    "negative": -10.0,
}


#: Default quota of every retrieval channel.
QUOTAS = {"two_tower": 180, "item_graph": 120, "trending": 60, "fresh": 80, "live": 40, "followed": 20}


@dataclass(frozen=True)
class CascadeConfig:
    """Knobs of the served cascade.

    Attributes:
        retrieved: contents that the channels bring for each request (contents).
        candidates: of these, contents that pre-ranking leaves for the ranker (contents).
        quotas: of those retrieved, as many as each channel may fill before the others take what is left, by
            channel (contents).
        trending_half_life_h: age at which a wanted outcome counts half for the trending channel, where a data
            set is cut by time (hours).
        trending_prior: what a market borrows from its region, and a region from the world, weighs as much as
            so many of its own outcomes (outcomes).
        fresh_exposures: contents shown at most so often in a market are fresh there (exposures).
        pool: best-valued contents that re-ordering chooses from (contents).
        slate: places in a reply (contents).
        seller_cap: places one seller may take in a slate (contents).
        category_cap: places one category may take in a slate (contents).
        weights: worth of a certain outcome, by task; a task without one counts 0.
    """

    retrieved: int = 500
    candidates: int = 100
    quotas: Mapping[str, int] = field(default_factory=lambda: dict(QUOTAS))
    trending_half_life_h: float = 48.0
    trending_prior: float = 100.0
    fresh_exposures: int = 20
    pool: int = 60
    slate: int = 10
    seller_cap: int = 2
    category_cap: int = 4
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def __post_init__(self) -> None:
        for name in ("retrieved", "candidates", "pool", "slate", "seller_cap", "category_cap"):
            if getattr(self, name) < 1:
                raise ValueError(f"cascade.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("trending_half_life_h", "trending_prior"):
            if not getattr(self, name) > 0:
                raise ValueError(f"cascade.{name} is {getattr(self, name)}; it must be above 0")
        if self.fresh_exposures < 0:
            raise ValueError(f"cascade.fresh_exposures is {self.fresh_exposures}; it must be at least 0")
        if not self.slate <= self.pool <= self.candidates <= self.retrieved:
            raise ValueError(
                f"cascade: slate {self.slate} <= pool {self.pool} <= candidates {self.candidates} <= "
                f"retrieved {self.retrieved} must hold"
            )
        for task in self.weights:
            if task not in WEIGHTS:
                raise ValueError(f"cascade.weights has {task!r}; there are {', '.join(WEIGHTS)}")
        object.__setattr__(self, "quotas", dict(QUOTAS) | dict(self.quotas))
        for channel, quota in self.quotas.items():
            if channel not in QUOTAS:
                raise ValueError(f"cascade.quotas has {channel!r}; there are {', '.join(QUOTAS)}")
            if quota < 0:
                raise ValueError(f"cascade.quotas.{channel} is {quota}; it must be at least 0")


@dataclass(frozen=True)
class Column:
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
    """

    markets: tuple[str, ...]
    tasks: tuple[str, ...]
    columns: tuple[Column, ...]
    history_length: int
    dim: int
    query_ids: int
    query_lists: int
    query_numbers: int
    content_ids: int
    content_numbers: int
    as_of: int
    config: CascadeConfig

    def value(self, probabilities: np.ndarray) -> np.ndarray:
        """Outcomes blended by the declared weights: probabilities float32[..., T] → float32[...]."""
        weights = np.array([self.config.weights.get(task, 0.0) for task in self.tasks])
        return (probabilities @ weights).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, release: Release) -> Plan:
        """The plan of a release."""
        body = release.json(FILE)
        return cls(
            **{
                **body,
                "markets": tuple(body["markets"]),
                "tasks": tuple(body["tasks"]),
                "columns": tuple(Column(**column) for column in body["columns"]),
                "config": CascadeConfig(**body["config"]),
            }
        )
