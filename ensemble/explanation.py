"""What became of every candidate on its way to the slate, stage by stage, for whoever asks for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from supply.eligibility import BARRED

LOW = "low in value"
EXCLUDED = "of an excluded seller"
INELIGIBLE = (
    *BARRED,
    "seen or excluded",
    "of a kind or category not asked for",
    EXCLUDED,
    "seller shown too often",
    "in a language not read",
)
"""Why a content of the market is no candidate; the first that holds."""
FUNNEL = ("contents", *INELIGIBLE, "retrieved", "gave_way", "kept", "began", "ended_at")
"""Columns of the tensor `funnel`: counts of one request, and the clock of the retrieval stage (ns). What gave
way would be among those kept by its score alone."""


@dataclass(frozen=True)
class StageReport:
    """One line of the funnel.

    Attributes:
        stage: its name.
        took: candidates that came in.
        kept: candidates that went on.
        dropped: the others, counted by reason, each once.
        ms: wall time of the run that the request shared, the way to the stage included (milliseconds).
    """

    stage: str
    took: int
    kept: int
    dropped: Mapping[str, int]
    ms: float


@dataclass(frozen=True)
class ItemReport:
    """Why an item of the slate stands where it stands.

    Attributes:
        content: id.
        preranking_score: of the light model; 0 where the release has none.
        value_rank: place among all candidates by value, from 1.
        rules: rules that kept contents of higher value from its place, in words.
    """

    content: str
    preranking_score: float
    value_rank: int
    rules: tuple[str, ...]


@dataclass(frozen=True)
class OtherReport:
    """A content of the pool that is not in the slate: its id, value (USD) and the reason."""

    content: str
    value: float
    reason: str


@dataclass(frozen=True)
class SlotReport:
    """A slot that did not get the least that it asks for, in words, and what kept it from that."""

    slot: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The funnel of a request, its items from the top, the rest of the pool by value, and slots given up."""

    stages: tuple[StageReport, ...] = field(default_factory=tuple)
    items: tuple[ItemReport, ...] = field(default_factory=tuple)
    others: tuple[OtherReport, ...] = field(default_factory=tuple)
    given_up: tuple[SlotReport, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, text: str) -> Explanation:
        """Read what a reply carries."""
        body = json.loads(text)
        return cls(
            tuple(StageReport(**stage) for stage in body["stages"]),
            tuple(ItemReport(**{**item, "rules": tuple(item["rules"])}) for item in body["items"]),
            tuple(OtherReport(**other) for other in body["others"]),
            tuple(SlotReport(**slot) for slot in body.get("given_up", ())),
        )


def explanation_text(
    funnel: np.ndarray,
    clock: np.ndarray,
    began: int,
    now: int,
    items: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    given_up: Sequence[Mapping[str, str]],
    below: Sequence[str],
    barred: Sequence[int],
    excluded: int,
) -> str:
    """One request's explanation as the JSON that a reply carries.

    Args:
        funnel: int64[F], columns as in `FUNNEL`.
        clock: int64[2], when the user-state stage began and ended (ns).
        began, now: of the re-ordering stage (ns).
        items, others, given_up: fields of `ItemReport`, `OtherReport` and `SlotReport`.
        below: of each candidate that was not among the pool, why.
        barred: candidates that might no longer be shown when they were ranked, by `BARRED`.
        excluded: candidates of sellers that the request excludes.
    """
    count = dict(zip(FUNNEL, funnel.tolist()))
    hidden = {reason: count[reason] for reason in INELIGIBLE}
    missed = count["contents"] - sum(hidden.values()) - count["retrieved"]
    reasons = [*below] + [other["reason"] for other in others]
    for reason, number in zip(BARRED, barred):
        reasons += [f"{reason} meanwhile"] * number
    reasons += [EXCLUDED] * excluded
    dropped = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    moments = [*clock.tolist(), count["began"], count["ended_at"], began, now]
    user, query, retrieval, ranking, reordering = (np.diff(moments) / 1e6).round(3).tolist()
    kept, found, gave_way = count["kept"], count["retrieved"], count["gave_way"]
    stages = [
        ("user_state", 0, 0, {}, user),
        ("query", 0, 0, {}, query),
        (
            "retrieval",
            count["contents"],
            found,
            {**hidden, "outside the channels' quotas": missed},
            retrieval,
        ),
        (
            "pre-ranking",
            found,
            kept,
            {
                "gave way to other categories or kinds": gave_way,
                "low in pre-ranking": found - kept - gave_way,
            },
            0.0,
        ),
        ("ranking", kept, kept, {}, ranking),
        ("reordering", kept, len(items), dropped, reordering),
    ]
    told = [
        {
            "stage": stage,
            "took": took,
            "kept": left,
            "dropped": {reason: number for reason, number in lost.items() if number},
            "ms": ms,
        }
        for stage, took, left, lost, ms in stages
    ]
    body: dict[str, Any] = {"stages": told, "items": list(items), "others": list(others)}
    return json.dumps(body | ({"given_up": list(given_up)} if given_up else {}))
