"""What clients tell of their slates, as events: JSON objects, checked when they come in.

`shown` says which places of a slate came into view, `outcome` what a person did with one of them. Both name
the request that the slate answered by its id, user and time, so that they find each other whenever they come.
No table library is imported here: the serving process checks them.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Mapping
from typing import Any

from market.outcomes import FLAGS, OUTCOMES
from market.profiles import KNOWN, is_market
from supply.events import AHEAD_S, Event, EventError, id_of, named, only, short, text_of, whole

SHOWN, OUTCOME = "shown", "outcome"
FEEDBACK_KINDS = (SHOWN, OUTCOME)
MOST_ITEMS = 1000
"""Places that one event tells of; none where nothing of the slate came into view."""
_REQUEST = ("event", "request", "user", "time")
_SHOWN = (*_REQUEST, "market", "release", "items")
_ITEM = ("content", "position", "propensity")
_OUTCOME = (*_REQUEST, "content", "at", *OUTCOMES)
_LAST_POSITION = 2**15 - 1
_LARGEST = 3.4e38
_LEAST_PROPENSITY = 1e-38


def parse(text: str | bytes, now: float) -> Event:
    """A checked record with exactly its own keys.

    Args:
        text: {"event": "shown", "request": a whole number of 64 bits, "user": id, "market": code, "time": of
            the request, s since the epoch, "release": name, optional, "items": [{"content": id, "position":
            from 0, "propensity": above 0 and up to 1}]}; or {"event": "outcome", "request", "user", "time":
            as there, "content": id, "at": s since the epoch, now by default} with what came of it: at least
            one of `market.outcomes.OUTCOMES`, flags 0 or 1.
        now: s since the epoch.

    Raises:
        EventError: not such an object.
    """
    said, name = named(text, FEEDBACK_KINDS, "{'event': 'outcome', 'request': 7, 'user': 'u17', ...}")
    only(said, name, _SHOWN if name == SHOWN else _OUTCOME)
    last = int(now) + AHEAD_S
    record: Event = {
        "event": name,
        "request": whole(said.get("request"), name, "request", 2**63 - 1, -(2**63)),
        "user": id_of(said, name, "user"),
        "time": whole(said.get("time"), name, "time", last),
    }
    if name == SHOWN:
        return record | _shown(said, name)
    at = whole(said.get("at", int(now)), name, "at", last)
    record |= {"content": id_of(said, name, "content"), "at": at}
    came = {outcome: _value(said[outcome], name, outcome) for outcome in OUTCOMES if outcome in said}
    if not came:
        raise EventError(
            f"{name!r} says nothing of what came of it; send at least one of {', '.join(OUTCOMES)}"
        )
    return record | came


def shown(
    request: int, user: str, market: str, time: int, items: list[dict[str, Any]], release: str | None = None
) -> Event:
    """A record of the places of a slate that came into view; `items` as `parse` takes them."""
    told = {"event": SHOWN, "request": request, "user": user, "market": market, "time": time, "items": items}
    return told | ({} if release is None else {"release": release})


def outcome(request: int, user: str, time: int, content: str, at: int | None = None, **came: float) -> Event:
    """A record of what came of one of them, such as `click=1` or `watch_s=12.5`, `at` a time (by default
    now). Of one outcome of one content the latest record holds, so `watch_s` is what was watched by then."""
    told = {"event": OUTCOME, "request": request, "user": user, "time": time, "content": content}
    return told | {"at": int(clock.time()) if at is None else at} | came


def _shown(said: Mapping[str, Any], name: str) -> Event:
    market, items = said.get("market"), said.get("items")
    if not isinstance(market, str) or not is_market(market):
        raise EventError(f"'market' of {name!r} is {short(market)}; use one of {KNOWN}")
    if not isinstance(items, list) or len(items) > MOST_ITEMS:
        raise EventError(
            f"'items' of {name!r} is {short(items)}; send a list of at most {MOST_ITEMS:,} places"
        )
    made = []
    for item in items:
        if not isinstance(item, Mapping) or set(item) != set(_ITEM):
            raise EventError(f"a place of {name!r} is {short(item)}; send {', '.join(_ITEM)}")
        propensity = item["propensity"]
        if not _is_number(propensity) or not _LEAST_PROPENSITY <= propensity <= 1:
            raise EventError(
                f"'propensity' of {name!r} is {short(propensity)}; send the slate's, above 0 and up to 1"
            )
        position = whole(item["position"], name, "position", _LAST_POSITION)
        made.append({"content": id_of(item, name, "content"), "position": position, "propensity": propensity})
    release = {"release": text_of(said, name, "release")} if "release" in said else {}
    return {"market": market} | release | {"items": made}


def _value(value: Any, name: str, outcome: str) -> float:
    if outcome in FLAGS:
        return whole(value, name, outcome, 1)
    least = -_LARGEST if outcome == "rating" else 0
    if not _is_number(value) or not least <= value <= _LARGEST:
        raise EventError(f"{outcome!r} of {name!r} is {short(value)}; send a finite number from {least:g} on")
    return value


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
