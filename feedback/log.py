"""The log of what came back: a folder of files, one for each hour in which people asked.

Lines are as those of the live state's journal, a checksum and an event, and are appended as there; a file is
never changed otherwise. What was shown and what came of it go to the hour of the request, however late they
come, so an hour is joined from its own file alone, and one that is past may be archived.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from supply.events import Event
from supply.journal import append, decode, encode, rewrite

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

    @classmethod
    def open(cls, folder: Path) -> FeedbackLog:
        """The log of a folder that is there; ValueError where there is none."""
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give the one that `pasar serve --feedback` has")
        return cls(folder)

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
        with self._locked(fcntl.LOCK_SH):  # against `forget`, not against other appends
            for hour, own in sorted(hours.items()):
                append(self._file(hour), own)

    def hours(self) -> list[int]:
        """Hours since the epoch of which there are records, ascending.

        Raises:
            ValueError: the folder holds something else.
        """
        found = []
        for file in self.folder.iterdir():
            if _of_hour(_unfinished(file.name)) is not None:
                continue
            hour = _of_hour(file.name)
            if hour is None or not file.is_file():
                raise ValueError(
                    f"{file} is no hour of a feedback log; move it elsewhere, or give another folder: that "
                    "of `pasar serve --feedback`"
                )
            found.append(hour)
        return sorted(found)

    def read(self, hour: int) -> tuple[list[Event], int]:
        """Records of an hour, in the order in which they came; and how many lines were torn or changed."""
        with self._file(hour).open("rb") as lines:
            return decode(lines)

    def forget(self, users: Container[str], progress: Callable[[int, int], None]) -> set[str]:
        """Take what was told of some users out of the log, and damaged lines, which may be of any.

        Servers may append meanwhile; they wait while a file is replaced.

        Args:
            progress: told how many hours of how many are done.

        Returns:
            The users of whom anything was told.
        """
        found: set[str] = set()
        hours = self.hours()
        with self._locked(fcntl.LOCK_EX):
            for file in self.folder.iterdir():
                if _of_hour(_unfinished(file.name)) is not None:
                    file.unlink()
        for done, hour in enumerate(hours, 1):
            with self._locked(fcntl.LOCK_EX):
                records, damaged = self.read(hour)
                kept = [record for record in records if record.get("user") not in users]
                found |= {record["user"] for record in records if record.get("user") in users}
                if damaged or len(kept) < len(records):
                    if kept:
                        rewrite(self._file(hour), encode(kept))
                    else:
                        self._file(hour).unlink()
            progress(done, len(hours))
        return found

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, how)
            yield
        finally:
            os.close(folder)

    def _file(self, hour: int) -> Path:
        return self.folder / _name(hour)


def _name(hour: int) -> str:
    """The name of the file of an hour."""
    return datetime.fromtimestamp(hour * HOUR_S, timezone.utc).strftime(_FORMAT)


def _of_hour(name: str) -> int | None:
    """The hour whose file has a name; None where none has."""
    with contextlib.suppress(ValueError):
        hour = int(datetime.strptime(name, _FORMAT).replace(tzinfo=timezone.utc).timestamp()) // HOUR_S
        return hour if _name(hour) == name else None
    return None


def _unfinished(name: str) -> str:
    """Which file a `rewrite` was to put in place, which goes on or was killed; "" where a name is of none."""
    return name[1:].rpartition(".")[0] if name.startswith(".") else ""
