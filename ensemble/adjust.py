"""A release that chooses otherwise from the same models: knobs of the cascade, changed without learning."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemble.blending import sold_by
from ensemble.plan import FILE, CascadeConfig, Plan, as_declared
from ensemble.release import MANIFEST, Release, ReleaseWriter

INFO = "adjusted"
"""In a release's `info`: what it was made of and what was changed, the latest last."""

FREE = (
    "category_share",
    "pool",
    "rules",
    "seller_cap",
    "category_cap",
    "content_frequency",
    "seller_frequency",
    "slots",
    "explore",
    "explore_outcomes",
)
"""Knobs that are read when a request is served and never before: nothing was learned with them."""

AMONG = ("quotas", "fresh_exposures")
TAUGHT = (*AMONG, "weights", "weights_for", "price_usd")
"""Knobs that are read when a request is served, and before that once: the pre-ranker learned to keep, of what
the channels brought by these quotas, what is worth most by these weights."""

_OF_THE_LOG = "is counted from the log"
_SHAPE = "is a shape of the served tensors, which a running server keeps"
BUILT = {
    "retrieved": "is what the search is tuned for and the pre-ranker learned from",
    "candidates": _SHAPE,
    "slate": _SHAPE,
    "trending_half_life_h": _OF_THE_LOG,
    "trending_prior": _OF_THE_LOG,
    "fatigue": _OF_THE_LOG,
}
"""All other knobs, with why they need a build."""

Changes = dict[str, tuple[Any, Any]]
"""Knob → its value before and after; an entry of a table has a name of its own, such as `weights.order`, and
None where it is not declared."""


class AdjustError(ValueError):
    """Knobs that a release cannot take over; the text says which and what to do."""


@dataclass(frozen=True)
class Adjusted:
    """A release made of another.

    Attributes:
        changed: knobs that differ from the release it was made of.
        since_taught: knobs that differ from those that the pre-ranker learned with.
        learners: what learned with any of these; a stacking did among what the quotas brought.
    """

    release: Release
    changed: Changes
    since_taught: Changes
    learners: tuple[str, ...]


def adjust(source: str | os.PathLike[str], target: str | os.PathLike[str], config: CascadeConfig) -> Adjusted:
    """Write the release `source` again at `target` with other knobs; it appears complete, or not at all.

    All files but the plan are the source's own, hard links where the disk allows. The name tells releases of
    other models or knobs apart: that of the build, and eight digits of a sum of all files.

    Args:
        config: every knob; those of `BUILT` must be the source's.

    Raises:
        ReleaseError: the source is damaged, or `target` exists or lies in the source.
        AdjustError: nothing differs, or a knob differs that needs a build.
        ValueError: all contents of a market are worth nothing under the weights.
    """
    release, place = Release.open(source), Path(target)
    release.expect_outside(place, "choose another folder")
    plan = Plan.of(release)
    changed = changes(plan.config, config)
    if not changed:
        raise AdjustError(f"{release.path} has these knobs already; change some of [build.cascade] first")
    named = dict.fromkeys(knob.partition(".")[0] for knob in changed)
    if refused := [knob for knob in named if knob not in (*FREE, *TAUGHT)]:
        why = "; ".join(f"{knob} {BUILT[knob]}" for knob in refused)
        raise AdjustError(
            f"{', '.join(refused)} cannot change without `pasar build`: {why}. Build with these settings, or "
            f"set them as {release.path} has them: "
            + ", ".join(f"{knob} = {old}" for knob, (old, _) in changed.items() if _of(knob, refused))
        )
    config.expect_worth(plan.tasks, plan.markets, sold_by(release))
    past = release.info.get(INFO, [])
    made_of = {
        "name": release.name,
        "created": release.created,
        "manifest_sha256": hashlib.sha256((release.path / MANIFEST).read_bytes()).hexdigest(),
    }
    every = [*past, {"of": made_of, "changed": {knob: list(pair) for knob, pair in changed.items()}}]
    body = replace(plan, config=config).to_json()
    holds = json.dumps(release.sums | {FILE: body}, sort_keys=True).encode()
    name = f"{every[0]['of']['name']}+{hashlib.sha256(holds).hexdigest()[:8]}"
    with ReleaseWriter(place, name=name, info=release.info | {INFO: every}) as made:
        made.link(release, but={FILE})
        made.json(FILE, body)
    since = _since_taught(every)
    # The ranker alone does not read what retrieval says.
    stacked = "retrieval_score" in plan.ranking_reads and any(_of(knob, AMONG) for knob in since)
    learners = ("the pre-ranker", "the stacking") if stacked else ("the pre-ranker",)
    return Adjusted(Release.open(place), changed, since, learners)


def changes(old: CascadeConfig, new: CascadeConfig) -> Changes:
    """Knobs in which two configurations differ, in the order of `CascadeConfig`."""
    before, after = (json.loads(json.dumps(as_declared(config))) for config in (old, new))
    return dict(_changes(before, after, ""))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], within: str) -> Iterator[tuple[str, Any]]:
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) or isinstance(after, dict):
            yield from _changes(before or {}, after or {}, f"{within}{key}.")
        elif before != after:
            yield f"{within}{key}", (before, after)


def _since_taught(every: list[dict[str, Any]]) -> Changes:
    """What differs, of the knobs that the pre-ranker learned with, after all changes since the build."""
    first, last = dict[str, Any](), dict[str, Any]()
    for one in every:
        for knob, (old, new) in one["changed"].items():
            if _of(knob, TAUGHT):
                first.setdefault(knob, old)
                last[knob] = new
    return {knob: (first[knob], last[knob]) for knob in first if first[knob] != last[knob]}


def _of(knob: str, knobs: tuple[str, ...] | list[str]) -> bool:
    return knob.partition(".")[0] in knobs
