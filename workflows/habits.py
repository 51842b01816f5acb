"""What the log says of a user beyond the contents they wanted: sellers they follow or bought from, and what
they were shown."""

from __future__ import annotations

import numpy as np

from workflows.examples import Examples, build_history

#: Outcomes after which a seller counts as followed.
BINDING_OUTCOMES = ("follow", "order")
#: Sellers kept for each user.
FOLLOWED = 20


def followed_sellers(examples: Examples, seller: np.ndarray, before: int | None = None) -> np.ndarray:
    """The last sellers that each user followed or bought from, each once.

    Args:
        seller: int32[N], codes of the contents' sellers, -1 where unknown.
        before: only what happened before this second counts; None for the whole log.

    Returns:
        int32[U, F], oldest first, left-aligned, -1 fills.
    """
    pairs, queries = examples.pairs, examples.queries
    bound = np.zeros(len(pairs.content), bool)
    for name in BINDING_OUTCOMES:
        if name in pairs.outcomes:
            bound |= pairs.outcomes[name] > 0
    rows = np.flatnonzero(bound)
    rows = rows[seller[pairs.content[rows]] >= 0]
    user = queries.user[pairs.query[rows]].astype(np.int64)
    time = queries.time[pairs.query[rows]] if examples.has_time else np.zeros(len(rows), np.int64)
    if before is not None:
        known = time < before
        rows, user, time = rows[known], user[known], time[known]
    sold_by = seller[pairs.content[rows]].astype(np.int64)
    order = np.argsort(time, kind="stable")
    user, sold_by = user[order], sold_by[order]
    # Of each user's outcomes with one seller the last.
    _, last = np.unique((user * (int(sold_by.max(initial=0)) + 1) + sold_by)[::-1], return_index=True)
    last = np.sort(len(user) - 1 - last)
    everyone = np.arange(len(examples.users))
    end = np.full(len(everyone), len(user))
    return build_history(user[last], last, sold_by[last], everyone, end, FOLLOWED)


def shown(examples: Examples, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The logged exposures from one second to before another: user int32[P], content int32[P], time int64[P],
    and whether it was wanted.

    Empty where only wanted contents were logged, or no time: then nothing is known of what was shown in vain.
    """
    pairs, queries = examples.pairs, examples.queries
    known = examples.has_time and examples.feedback == "impressions"
    within = (queries.time >= start) & (queries.time < end) & known
    rows = np.flatnonzero(within[pairs.query])
    query = pairs.query[rows]
    return queries.user[query], pairs.content[rows], queries.time[query], pairs.positive[rows]
