"""The log of what came back: a folder of files, one for each hour in which people asked.

Lines are as those of the live state's journal, a checksum and an event, and are appended as there; a file is
never changed otherwise. What was shown and what came of it go to the hour of the request, however late they
come, so an hour is joined from its own file alone, and one that is past may be archived.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from supply.events import Event
from supply.journal import append, decode

HOUR_S = 3600
_FORMAT = "%Y-%m-%dT%H.log"


def expect_apart(log: Path, *others: Path | None) -> None:
    """Raise ValueError where the folder of a feedback log is that of something else."""
    if log.resolve() in [other.resolve() for other in others if other is not None]:
        raise ValueError(f"{log} is the folder of something else; give the feedback log its own")


class FeedbackLog:
    """Appends records and reads them by the hour; `folder` is made where it does not exist.

    Raises:
        ValueError: it is a file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(f"{folder} is a file; give a folder for the feedback log") from None

    def expect_writable(self) -> None:
        """Raise OSError where nothing can be written into the folder."""
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def append(self, records: Iterable[Event]) -> None:
        """Append checked records, those of an hour in one write.

        Raises:
            OSError: an hour's could not be written whole; the hours before it may be. All may be sent again:
                of equal records one counts.
        """
        hours: dict[int, list[Event]] = defaultdict(list)
        for record in records:
            hours[record["time"] // HOUR_S].append(record)
        for hour, own in sorted(hours.items()):
            append(self._file(hour), own)

    def hours(self) -> list[int]:
        """Hours since the epoch of which there are records, ascending.

        Raises:
            ValueError: the folder holds something else.
        """
        found = []
        for file in self.folder.iterdir():
            with contextlib.suppress(ValueError):
                moment = datetime.strptime(file.name, _FORMAT).replace(tzinfo=timezone.utc)
                hour = int(moment.timestamp()) // HOUR_S
                if file == self._file(hour) and file.is_file():
                    found.append(hour)
                    continue
            raise ValueError(
                f"{file} is no hour of a feedback log; move it elsewhere, or give another folder: that of "
                "`pasar serve --feedback`"
            )
        return sorted(found)

    def read(self, hour: int) -> tuple[list[Event], int]:
        """Records of an hour, in the order in which they came; and how many lines were torn or changed."""
        with self._file(hour).open("rb") as lines:
            return decode(lines)

    def _file(self, hour: int) -> Path:
        return self.folder / datetime.fromtimestamp(hour * HOUR_S, timezone.utc).strftime(_FORMAT)
