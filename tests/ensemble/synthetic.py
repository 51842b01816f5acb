"""Small random releases for the stages: arrays and a plan, without a trained model.

Vectors hold small whole numbers, so scores are exact and often tied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensemble.plan import DIVERSITIES, FILE, LIMITS, QUOTAS, CascadeConfig, Plan, QueryColumn, Slot
from ensemble.preranking import BIAS, CONTENTS, HIDDEN, OUT, QUERY
from ensemble.release import Release, ReleaseWriter
from ensemble.search import MarketIndex, write_indexes
from market.kinds import KINDS
from market.statistics import PAIR_FEATURES

MARKETS = ("BR", "GB", "ID")
CATEGORIES = ("books", "food", "shoes", "toys")
TASKS = ("click", "order", "negative")
WEIGHTS = {"click": 1.0, "order": 0.5, "negative": -2.0}
START, END = 1_772_400_000, 1_772_500_000
DIM, HISTORY, NEIGHBOURS = 3, 5, 4
NEVER = np.iinfo(np.int64).max
COLUMNS = (
    QueryColumn("user_id", "string", "request"),
    QueryColumn("language", "string", "user"),
    QueryColumn("age", "integer", "user"),
    QueryColumn("spend", "number", "user"),
    QueryColumn("market", "string", "request"),
    QueryColumn("hour", "integer", "context"),
    QueryColumn("days_to_payday", "number", "context"),
    QueryColumn("hist_content_id", "string", "history"),
    QueryColumn("hist_seller_id", "string", "history"),
    QueryColumn("history_length", "number", "request"),
)


def release(folder: Path, seed: int) -> Release:
    """The random world of a seed; seed 0 has neither users nor contents for market BR."""
    random = np.random.default_rng(seed)
    contents, users = int(random.integers(1, 70)), int(random.integers(1, 12)) if seed else 0
    slate = int(random.integers(1, 9))
    pool = slate + int(random.integers(0, 20))
    candidates = pool + int(random.integers(0, 20))
    retrieved = candidates + int(random.integers(0, 20))
    quotas = {name: int(random.integers(0, retrieved)) for name in QUOTAS if name != "worth"}
    of_worth = np.random.default_rng([seed, 3])
    quotas["worth"] = int(of_worth.integers(0, retrieved))
    most = max(sum(quotas.values()), retrieved)
    config = CascadeConfig(
        retrieved=retrieved,
        candidates=candidates,
        quotas={name: quota * retrieved // most for name, quota in quotas.items()},
        pool=pool,
        slate=slate,
        fresh_exposures=1,
        seller_cap=int(random.integers(1, 4)),
        category_cap=int(random.integers(1, 4)),
        weights=WEIGHTS,
        **_sound(_with_least(_rules(np.random.default_rng([seed, 1]), slate), seed, slate), slate),
    )
    plan = Plan(
        markets=MARKETS,
        tasks=TASKS,
        columns=COLUMNS,
        history_length=HISTORY,
        dim=DIM,
        query_ids=1,
        query_lists=1,
        query_numbers=1,
        content_ids=2,
        content_numbers=1 + len(PAIR_FEATURES),
        as_of=END,
        config=config,
    )
    others = np.random.default_rng([seed, 2])
    worth = of_worth.integers(-1, 4, (len(MARKETS), contents)).astype(np.float32)
    worth[worth < 0] = np.nan
    available = random.random((len(MARKETS), contents)) < 0.7
    available[0] &= seed > 0
    opens = random.integers(START, END, contents)
    ended = np.where(random.random(contents) < 0.5, NEVER, opens + random.integers(0, 50_000, contents))
    seller = random.integers(-1, 6, contents).astype(np.int32)
    history = random.integers(0, contents, (users, HISTORY)).astype(np.int32)
    history[np.arange(HISTORY) >= random.integers(0, HISTORY + 1, users)[:, None]] = -1
    followed = np.stack([random.permutation(6)[:3] for _ in range(users)] or [np.zeros(3, int)])[:users]
    followed = np.where(random.random(followed.shape) < 0.7, followed, -1).astype(np.int32)
    edges = np.stack([random.permutation(contents)[:NEIGHBOURS] for _ in range(contents)])
    edges = np.where(random.random(edges.shape) < 0.6, edges, -1).astype(np.int32)
    arrays = {
        "content_vectors": random.integers(-2, 3, (contents, DIM)).astype(np.float32),
        "content_ids": random.integers(3, 9, (contents, 2)),
        "stand_in_ids": np.zeros((len(MARKETS), 2), np.int64),
        "content_numbers": random.normal(size=(contents, 1)).astype(np.float32),
        "available": available,
        "popularity": random.integers(0, 4, (len(MARKETS), contents)).astype(np.float32),
        "trend": random.integers(0, 4, (len(MARKETS), contents)).astype(np.float32),
        "worth": worth,
        "exposures": random.integers(0, 4, (len(MARKETS), contents)).astype(np.float32),
        "popularity_world": random.integers(0, 9, contents).astype(np.float32),
        "created_at": opens,
        "ended_at": ended,
        "seller_code": seller,
        "category_code": random.integers(-1, len(CATEGORIES), contents).astype(np.int32),
        "kind_code": others.integers(0, len(KINDS), contents).astype(np.int8),
        "price_usd": np.where(others.random(contents) < 0.2, np.nan, others.random(contents) * 40).astype(
            np.float32
        ),
        "price_usual": others.exponential(20, (len(MARKETS), 5)).astype(np.float32),
        "purchasing_power": np.array([2, 1, 3], np.float32),
        "language_code": others.integers(-1, 2, contents).astype(np.int32),
        "language_fit": others.integers(0, 3, (len(MARKETS), 3, 3)).astype(np.float32) / 2,
        "user_language": others.integers(-1, 2, users).astype(np.int32),
        "text_content_id": np.array([f"content-{i}" for i in random.permutation(contents)], str),
        "text_kind": np.where(random.random(contents) < 0.4, "live", ""),
        "seller_ids": np.array([f"seller-{code}" for code in range(6)]),
        "stock": random.choice([-1, 0, 5], contents, p=[0.6, 0.1, 0.3]),
        "text_seller_id": np.array(["" if code < 0 else f"seller-{code}" for code in seller], str),
        "user_id": np.array([f"user-{i}" for i in random.permutation(users)], str),
        "user_history": history,
        "user_followed": followed,
        "user_tired_contents": np.where(random.random(history.shape) < 0.5, history, -1),
        "user_tired_contents_until": random.integers(START, END, history.shape),
        "user_tired_sellers": np.where(followed < 0, 4, -1).astype(np.int32),
        "user_tired_sellers_until": random.integers(START, END, followed.shape),
        "user_seen": np.where(random.random(history.shape) < 0.7, history, -1),
        "graph_neighbours": edges,
        "graph_weights": np.where(edges >= 0, random.integers(1, 5, edges.shape) / 8, 0).astype(np.float32),
        "market_graph_place": np.full((len(MARKETS), contents), -1, np.int32),
        "market_graph_neighbours": np.zeros((0, 1), np.int32),
        "market_graph_weights": np.zeros((0, 1), np.float32),
        "low_rank_source": others.normal(size=(contents, 3 * (seed % 3 == 0))).astype(np.float32),
        "low_rank_target": others.normal(size=(contents, 3 * (seed % 3 == 0))).astype(np.float32),
        "attribute_age": random.integers(18, 60, users),
        "attribute_spend": random.normal(size=users).astype(np.float32),
    }
    arrays["kind_code"] = np.where(
        arrays["text_kind"] == "live", KINDS.index("live"), arrays["kind_code"] // 2 * KINDS.index("product")
    ).astype(np.int8)
    arrays["text_kind"] = np.array(KINDS)[arrays["kind_code"]]
    arrays["text_category"] = np.array([*CATEGORIES, ""])[arrays["category_code"]]
    arrays["attribute_language"] = np.array(["en", "pt", ""])[arrays["user_language"]]
    arrays["text_content_language"] = np.array(["en", "pt-BR", ""])[arrays["language_code"]]
    arrays["conversion"] = others.normal(size=contents).astype(np.float32) * (seed % 5 == 0)
    if seed % 2:  # half of the worlds have a pre-ranker
        numbers = 1 + len(PAIR_FEATURES) + bool(arrays["low_rank_source"].size) + arrays["conversion"].any()
        arrays |= {
            name.removesuffix(".npy"): random.integers(-2, 3, shape).astype(np.float32)
            for name, shape in (
                (QUERY, (DIM, 2)),
                (CONTENTS, (contents, 2)),
                (HIDDEN, (2 * 2 + numbers + 1, 3)),
                (BIAS, (3,)),
                (OUT, (3,)),
            )
        }
    path = folder / f"world-{seed}"
    with ReleaseWriter(path, name=path.name, info={"seed": seed}) as made:
        made.json(FILE, plan.to_json())
        vectors = arrays["content_vectors"]
        write_indexes(made, [MarketIndex.build(vectors[here], vectors[:0], k=1) for here in available])
        for name, array in arrays.items():
            made.array(f"{name}.npy", array)
    return Release.open(path)


def _rules(random: np.random.Generator, slate: int) -> dict[str, Any]:
    """Any rules in any order, and what they need."""
    limits = random.permutation(LIMITS)[: random.integers(1, len(LIMITS) + 1)].tolist()
    kinds = random.choice(KINDS, random.integers(0, 4))
    return {
        "rules": (*limits, *random.permutation(DIVERSITIES)[: random.integers(0, 2)].tolist(), "exploration"),
        "content_frequency": int(random.integers(1, 3)),
        "seller_frequency": int(random.integers(1, 5)),
        "slots": tuple(
            Slot(str(kind), int(random.integers(0, 3)), int(random.integers(0, slate + 1))) for kind in kinds
        ),
        "explore": float(random.choice([0.0, 0.2, 0.3, 0.5])),
        "explore_outcomes": int(random.integers(3, 9)),
        "weights_for": {
            "live": {"click": 2.0},
            "ID": {"negative": -1.0, "click": 0.5},
            "ID.product": {"click": 3.0},
        },
        "price_usd": 10.0,
    }


def _with_least(rules: dict[str, Any], seed: int, slate: int) -> dict[str, Any]:
    """Rules with slots that ask for kinds too, in two thirds of the worlds and as far as they fit."""
    random, free = np.random.default_rng([seed, 4]), slate - int(rules["explore"] * slate + 1e-9)
    slots, last = list(rules["slots"]), 0
    for kind in random.permutation(KINDS)[: int(random.integers(0, 3))].tolist():
        least = int(random.integers(1, 3))
        if last + least > free:
            break
        last = int(random.integers(last + least, free + 1))
        within = 0 if last == free and random.random() < 0.5 else last
        most = least + 1 if random.random() < 0.3 else None
        slots.insert(int(random.integers(0, len(slots) + 1)), Slot(kind, most, within, least))
    return rules | {"slots": tuple(slots)}


def _sound(rules: dict[str, Any], slate: int) -> dict[str, Any]:
    """Rules without the slots that contradict those before them."""
    kept: list[Slot] = []
    for slot in rules["slots"]:
        try:
            CascadeConfig(slate=slate, explore=rules["explore"], slots=(*kept, slot))
        except ValueError:
            continue
        kept.append(slot)
    return rules | {"slots": tuple(kept)}


class Worlds:
    """The random worlds of one test session, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, dict[int, Release]()

    def __call__(self, seed: int) -> Release:
        if seed not in self.made:
            self.made[seed] = release(self.folder, seed)
        return self.made[seed]
