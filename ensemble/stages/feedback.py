"""Takes feedback in: checks what clients tell of their slates and appends it to the feedback log."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ensemble.errors import Code, RequestError
from ensemble.steps import StageStep, TensorSpec
from feedback.log import FeedbackLog
from feedback.records import parse
from supply.events import EventError, parse_all


class Feedback:
    """A step of its own beside the cascade, which never reads what it wrote.

    Args:
        folder: of the feedback log.
    """

    name = "feedback"

    def __init__(self, folder: Path) -> None:
        self.log = FeedbackLog(folder)

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
        now = time.time()
        try:
            rows = [parse_all(texts, now, what="record", parse=parse) for texts in record]
        except EventError as error:
            raise RequestError(Code.INVALID_ARGUMENT, str(error)) from None
        try:
            self.log.append([told for row in rows for told in row])
        except OSError as error:
            raise RequestError(
                Code.UNAVAILABLE,
                f"the feedback log cannot be written: {error.strerror or error}; send again",
            ) from None
        return {"written": np.array([len(row) for row in rows], np.int64)}
