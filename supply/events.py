"""What happens to contents and sellers by the second, as events: JSON objects, checked when they come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from market.ids import LONGEST_ID, is_id

AHEAD_S = 86_400
"""An event may lie so far in the future: a start is announced ahead, and clocks differ."""
_MOST = 2**31 - 1


class EventError(ValueError):
    """An event that cannot be taken in; the text says what is wrong with it."""


@dataclass(frozen=True)
class Kind:
    """What one kind of event says.

    Attributes:
        field: the state that it sets; of all events that set it for one subject the latest holds.
        subject: "content" or "seller", the key that names whom it is about.
        value: the key of its value, or the value that it always has.
        number: whether the value of that key is a number.
    """

    field: str
    subject: str
    value: str | int
    number: bool = True


EVENT_KINDS = {
    "started": Kind("open", "content", 1),
    "ended": Kind("open", "content", 0),
    "viewers": Kind("viewers", "content", "viewers"),
    "showing": Kind("showing", "content", "product", number=False),
    "stock": Kind("stock", "content", "stock"),
    "taken_down": Kind("down", "content", 1),
    "put_back": Kind("down", "content", 0),
    "seller_suspended": Kind("suspended", "seller", 1),
    "seller_restored": Kind("suspended", "seller", 0),
}
"""Every kind: a room opened, closed, its viewers, the product being shown; pieces in stock (0: sold out); a
content removed from every feed, and brought back; all contents of a seller likewise."""

Event = dict[str, Any]
TAKEN = "taken"
"""Of an event that lies in the future: when it was taken in (s since the epoch)."""


def turn(event: Event) -> int:
    """When an event counts as said, by which the latest of a subject holds (s since the epoch).

    It is the time that it names, but never later than it was taken in: what happens after an announcement
    holds against it.
    """
    return event[TAKEN if TAKEN in event else "time"]


def parse(text: str | bytes, now: float) -> Event:
    """A checked event with exactly its own keys and, where its time is still to come, `TAKEN`.

    Args:
        text: {"event": kind, "content" or "seller": id, "time": s since the epoch, and the kind's value}; an
            event without a time happened now.
        now: s since the epoch.

    Raises:
        EventError: not such an object.
    """
    said, name = named(text, EVENT_KINDS, "{'event': 'ended', 'content': 'l00017'}")
    kind = EVENT_KINDS[name]
    keys = ["event", kind.subject, "time", *([kind.value] if isinstance(kind.value, str) else [])]
    only(said, name, keys)
    event: Event = {"event": name, kind.subject: id_of(said, name, kind.subject)}
    event["time"] = whole(said.get("time", int(now)), name, "time", int(now) + AHEAD_S)
    if event["time"] > int(now):
        event[TAKEN] = int(now)
    if isinstance(kind.value, str):
        if kind.value not in said:
            raise EventError(f"event {name!r} has no value {kind.value!r}; send {', '.join(keys)}")
        value = said[kind.value]
        event[kind.value] = (
            whole(value, name, kind.value, _MOST) if kind.number else id_of(said, name, kind.value)
        )
    return event


def parse_all(
    texts: Iterable[str | bytes],
    now: float,
    *,
    what: str = "line",
    first: int = 1,
    parse: Callable[[str | bytes, float], Event] = parse,
) -> list[Event]:
    """Checked events; one that is wrong refuses all, by its number. Empty texts are left out.

    Args:
        parse: checks one.
    """
    events = []
    for number, text in enumerate(texts, first):
        if text.strip():
            try:
                events.append(parse(text, now))
            except EventError as error:
                raise EventError(f"{what} {number}: {error}") from None
    return events


def named(text: str | bytes, kinds: Iterable[str], example: str) -> tuple[Mapping[str, Any], str]:
    """A JSON object and its "event", one of `kinds`.

    Args:
        example: of an object, for who sends none.
    """
    try:
        said = json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise EventError(f"not JSON ({error}); send one object a line") from None
    except RecursionError:
        raise EventError("JSON nested too deeply; send one flat object a line") from None
    if not isinstance(said, Mapping):
        raise EventError(f"{short(said)} is no object; send {example}")
    name = said.get("event")
    if not isinstance(name, str) or name not in kinds:
        raise EventError(f"'event' is {short(name)}; use one of {', '.join(kinds)}")
    return said, name


def only(said: Mapping[str, Any], name: str, keys: Iterable[str]) -> None:
    """Refuse what an event has beside its `keys`."""
    for key in said:
        if key not in keys:
            raise EventError(f"{name!r} has no {short(key)}; it has {', '.join(keys)}")


def id_of(said: Mapping[str, Any], name: str, key: str) -> str:
    """The id that an event has under a key."""
    text = text_of(said, name, key)
    if not is_id(text):
        raise EventError(
            f"{key!r} of {name!r} is {short(text)}; an id has 1 to {LONGEST_ID} characters without NUL"
        )
    return text


def text_of(said: Mapping[str, Any], name: str, key: str) -> str:
    """The text that an event has under a key, such as an id."""
    value = said.get(key)
    if not isinstance(value, str) or not value:
        raise EventError(f"{key!r} of {name!r} is {short(value)}; send an id, as text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EventError(f"{key!r} of {name!r} is {short(value)}, half a character; send an id") from None
    return value


def whole(value: Any, name: str, key: str, most: int, least: int = 0) -> int:
    """A value of an event that is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise EventError(f"{key!r} of {name!r} is {short(value)}; send a whole number from {least} to {most}")
    return value


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
