"""Takes feedback in: checks what clients tell of their slates and appends it to the feedback log."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ensemble.counters import record_tally
from ensemble.intake import append_all, taken_in
from ensemble.steps import StageStep, TensorSpec
from feedback.log import FeedbackLog
from feedback.records import parse


class Feedback:
    """A step of its own beside the cascade, which never reads what it wrote.

    Args:
        folder: of the feedback log.
    """

    name = "feedback"

    def __init__(self, folder: Path) -> None:
        self.log = FeedbackLog(folder)
        self._tally = record_tally()
        self.tallies = (self._tally,)

    @staticmethod
    def step() -> StageStep:
        """Border of the stage."""
        return StageStep(
            Feedback.name, (TensorSpec("record", object, (-1,)),), (TensorSpec("written", np.int64),)
        )

    def __call__(self, record: np.ndarray) -> dict[str, np.ndarray]:
        """Append records, each a text as `feedback.records.parse` takes it; "" fills.

        Args:
            record: text[B, R].

        Returns:
            written int64[B], records appended.

        Raises:
            RequestError: INVALID_ARGUMENT, one is wrong and none was appended; UNAVAILABLE, the log cannot be
                written, and what is sent again counts once.
        """
        rows = taken_in(record, time.time(), "record", parse)
        append_all(self.log.append, rows, "the feedback log", "; what is sent again counts once")
        self._tally.add([record for row in rows for record in row])
        return {"written": np.array([len(row) for row in rows], np.int64)}
