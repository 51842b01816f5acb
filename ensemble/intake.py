"""What the steps beside the cascade have in common: texts come in, are checked, and are appended."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ensemble.errors import Code, RequestError, invalid
from supply.events import Event, EventError, parse, parse_all


def taken_in(
    texts: np.ndarray, now: float, what: str, parse: Callable[[str | bytes, float], Event] = parse
) -> list[list[Event]]:
    """The checked events of each request, from text[B, E]; "" fills.

    Args:
        now: s since the epoch.
        what: such a text is called in messages.
        parse: checks one.

    Raises:
        RequestError: INVALID_ARGUMENT; one is wrong.
    """
    try:
        return [parse_all(row, now, what=what, parse=parse) for row in texts]
    except EventError as error:
        raise invalid(str(error)) from None


def append_all(
    append: Callable[[list[Event]], None], rows: Iterable[list[Event]], where: str, then: str = ""
) -> None:
    """Append the events of all requests.

    Args:
        where, then: what cannot be written, and what to do, for the message.

    Raises:
        RequestError: UNAVAILABLE; they could not be written.
    """
    try:
        append([event for row in rows for event in row])
    except OSError as error:
        raise RequestError(
            Code.UNAVAILABLE, f"{where} cannot be written: {error.strerror or error}{then}"
        ) from None
