"""Takes events in: checks them and appends them to the journal of the live state."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ensemble.counters import event_tally
from ensemble.intake import append_all, taken_in
from ensemble.lookup import IdIndex
from ensemble.release import Release
from ensemble.steps import StageStep, TensorSpec
from feedback.log import FeedbackLog
from supply.events import EVENT_KINDS
from supply.journal import Journal


class Events:
    """A step of its own beside the cascade. The stages read what it wrote at their next request.

    Args:
        state: folder of the live state.
        feedback: folder of the feedback log, which remembers what the live state forgets; None where there is
            none.
    """

    name = "events"

    def __init__(self, release: Release, state: Path, feedback: Path | None = None) -> None:
        self.journal = Journal(state)
        self.log = None if feedback is None else FeedbackLog(feedback)
        self._tally = event_tally()
        self.tallies = (self._tally,)
        self.known = {
            "content": IdIndex(release.array("text_content_id.npy")),
            "seller": IdIndex(release.array("seller_ids.npy")),
        }

    @staticmethod
    def step() -> StageStep:
        """Border of the stage."""
        return StageStep(
            Events.name,
            (TensorSpec("event", object, (-1,)),),
            (TensorSpec("written", np.int64), TensorSpec("unknown", np.int64)),
        )

    def __call__(self, event: np.ndarray) -> dict[str, np.ndarray]:
        """Append events, each a text as `supply.events.parse` takes it; "" fills.

        Args:
            event: text[B, E].

        Returns:
            written int64[B], events appended; unknown int64[B], of them those about an id that this release
            does not know: they wait in the journal for one that does.

        Raises:
            RequestError: INVALID_ARGUMENT, one is wrong and none was appended; UNAVAILABLE, journal or log
                cannot be written, and what is sent again counts once.
        """
        rows = taken_in(event, time.time(), "event")
        # First what decides about what people see; the log is only learned from.
        append_all(self.journal.append, rows, "the journal")
        if self.log is not None:
            append_all(
                self.log.append,
                rows,
                "the events hold, but the feedback log",
                "; what is sent again counts once",
            )
        self._tally.add([event for row in rows for event in row])
        unknown = np.zeros(len(rows), np.int64)
        for subject, index in self.known.items():
            about = [
                (row, e[subject])
                for row, es in enumerate(rows)
                for e in es
                if EVENT_KINDS[e["event"]].subject == subject
            ]
            if about:
                lost = index(np.array([name for _, name in about], object)) < 0
                np.add.at(unknown, np.array([row for row, _ in about]), lost)
        return {"written": np.array([len(row) for row in rows], np.int64), "unknown": unknown}
