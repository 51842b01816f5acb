"""Labels of live rooms over a sliding window: what a person does there in the time after each impression.

Who stays in a room is logged as many impressions, each of its own moment; the order comes at one of them, and
the others would say that nobody wanted anything. With a window each counts what follows soon, and no more: an
hour later the room shows something else (Liang et al., "Ensure Timeliness and Accuracy: A Novel Sliding
Window Data Stream Paradigm for Live Streaming Recommendation", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

#: Outcomes that add up; any other happened or did not.
AMOUNTS = ("watch_s", "value")
#: Outcomes that are no event.
ALONE = ("rating",)


def over_windows(
    outcomes: Mapping[str, np.ndarray],
    rows: np.ndarray,
    user: np.ndarray,
    content: np.ndarray,
    time: np.ndarray,
    split: np.ndarray,
    window_s: int,
) -> dict[str, np.ndarray]:
    """Outcomes float32[P] by name, those of some rows over the `window_s` seconds from each on.

    Amounts are summed, flags are set where any is, and where nothing is known in a window it is NaN. Rows
    count together that are of one user, one content and one part of the log: no label knows a later part.

    Args:
        outcomes: float32[P] by name; NaN is unknown.
        rows: int64[R], the impressions of live rooms.
        user, content, time, split: int[P] of the log.
    """
    who, what, when, part = (
        np.asarray(array)[rows].astype(np.int64) for array in (user, content, time, split)
    )
    order = np.lexsort((when, part, what, who))
    rows, when = rows[order], when[order]
    stay = np.stack([who, what, part])[:, order]
    of = np.cumsum(np.append(False, (stay[:, 1:] != stay[:, :-1]).any(axis=0)))[: len(rows)]
    when = when - when.min(initial=np.iinfo(np.int64).max)
    key = of * (when.max(initial=0) + window_s + 1) + when
    first, last = np.searchsorted(key, key), np.searchsorted(key, key + window_s, side="right")
    made = {}
    for name, values in outcomes.items():
        if name in ALONE:
            made[name] = values
            continue
        own = np.asarray(values)[rows].astype(np.float64)
        known = np.append(0, np.cumsum(~np.isnan(own)))
        total = np.append(0, np.cumsum(np.nan_to_num(own)))
        found = total[last] - total[first]
        found = found if name in AMOUNTS else (found > 0.5).astype(np.float64)
        made[name] = np.array(values)
        made[name][rows] = np.where(known[last] > known[first], found, np.nan)
    return made
