"""The journal of events: a file that many processes append to and each serving process follows.

Every line is a checksum and an event. An append is one write of whole lines to a file opened with O_APPEND,
so lines of several writers do not mix; what a crash tore is found by its checksum and ignored. When the
journal has grown, it is replaced, by rename, by the events that still hold. Appends are not synced to disk
one by one: they survive the death of every process, but the last of them not that of the machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from supply.events import EVENT_KINDS, Event, turn

JOURNAL, LOCK = "journal", "lock"
COMPACT_BYTES = 32 * 2**20
"""A journal this large is compacted, if it has doubled since the last time."""
_SNAPSHOT = "snapshot"
_AT_ONCE = 4096
"""Lines that one call parses. No other thread runs meanwhile, and a serving process in which none has run for
0.7 s is ended (`ensemble.triton.DeadMansSwitch`)."""
_LOG = logging.getLogger(__name__)


class Journal:
    """Appends events; `folder` is made where it does not exist.

    Args:
        folder: of the live state.
        compact_bytes: size from which on appending compacts (bytes).

    Raises:
        ValueError: it is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], compact_bytes: int = COMPACT_BYTES) -> None:
        self.folder, self.compact_bytes = Path(folder), compact_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(f"{folder} is a file; give a folder for the live state") from None
        self.path = self.folder / JOURNAL
        self.path.touch()

    def append(self, events: Sequence[Event]) -> None:
        """Append checked events, all in one write.

        Raises:
            OSError: they could not be written whole; none of them is surely taken in.
        """
        if not events:
            return
        with self._locked(fcntl.LOCK_SH):  # against a compaction, not against other appends
            size = append(self.path, events)
        if size >= self.compact_bytes:
            try:
                self._compact_if_doubled()
            except OSError as error:
                # The events are written: a sender told otherwise would send them again.
                _LOG.warning("%s grows on, it could not be compacted: %s", self.path, error)

    def compact(self) -> None:
        """Replace the journal by the events that still hold; readers start it anew."""
        with self._locked(fcntl.LOCK_EX):
            self._compact()

    def _compact_if_doubled(self) -> None:
        with self._locked(fcntl.LOCK_EX):
            size = self.path.stat().st_size
            with self.path.open("rb") as journal:
                first, _ = decode([journal.readline()])
            last = first[0].get("bytes", 0) if first and first[0]["event"] == _SNAPSHOT else 0
            if size >= max(self.compact_bytes, 2 * last):
                self._compact()

    def _compact(self) -> None:
        with self.path.open("rb") as journal:
            events, _ = decode(journal)
        held: dict[tuple[str, str], Event] = {}
        foreign: list[Event] = []
        for event in events:
            if event["event"] in EVENT_KINDS:
                kind = EVENT_KINDS[event["event"]]
                key = kind.field, event[kind.subject]
                if key not in held or turn(event) >= turn(held[key]):
                    held[key] = event
            elif event["event"] != _SNAPSHOT:
                foreign.append(event)  # only a version that knows the kind can say what it replaces
        body = encode([*held.values(), *foreign])
        rewrite(self.path, encode([{"event": _SNAPSHOT, "bytes": len(body)}]) + body)

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self.folder / LOCK).open("w") as lock:
            fcntl.flock(lock, how)
            yield


class Tail:
    """Reads what was appended to a journal since the last time.

    Attributes:
        damaged: lines that were torn or changed, and so ignored.
        foreign: events of kinds that another version of this program wrote and this one does not know,
            ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._file: tuple[int, int] | None = None
        self._size = self._read = 0
        self.damaged = self.foreign = 0

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self) -> tuple[list[Event], bool]:
        """New events, in order; and whether they are the whole journal anew, since it was replaced.

        Costs one system call where nothing is new.
        """
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return [], False
        anew = (status.st_dev, status.st_ino) != self._file or status.st_size < self._read
        if not anew and status.st_size == self._size:
            return [], False
        if anew:
            handle, old = os.open(self.path, os.O_RDONLY), self._handle
            self._handle = handle
            if old >= 0:
                os.close(old)
            status = os.fstat(self._handle)
            self._file, self._read = (status.st_dev, status.st_ino), 0
        self._size = status.st_size
        block = os.pread(self._handle, self._size - self._read, self._read)
        whole = block.rfind(b"\n") + 1  # a line without its end is still being written, or torn
        self._read += whole
        events, damaged = decode(block[:whole].split(b"\n"))
        self.damaged += damaged
        events = [event for event in events if event["event"] != _SNAPSHOT]
        known = [event for event in events if event["event"] in EVENT_KINDS]
        if lost := len(events) - len(known):
            if not self.foreign:
                _LOG.warning("%s has events of kinds that this version does not know; ignored", self.path)
            self.foreign += lost
        return known, anew


def append(path: Path, events: Iterable[Event]) -> int:
    """Append events to a file, all in one write; its size afterwards (bytes).

    Raises:
        OSError: they could not be written whole; none of them is surely taken in.
    """
    # A line that another writer's crash has torn ends here.
    block = b"\n" + encode(events)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with _named(path):
            written = os.write(handle, block)
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if written != len(block):
        why = f"it took {written} of {len(block)} bytes; make room and send again"
        raise OSError(errno.ENOSPC, why, str(path))
    return size


def rewrite(path: Path, body: bytes) -> None:
    """Put a file of these lines in the place of one; for who keeps others from appending to it."""
    for left in path.parent.glob(f".{path.name}.*"):  # by one that was killed
        left.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with _named(path), os.fdopen(handle, "wb") as made:
            made.write(body)
            made.flush()
            os.fsync(made.fileno())
        of = path.stat()  # who may append may go on, whoever rewrites
        for user, group in ((-1, of.st_gid), (of.st_uid, -1)):
            with contextlib.suppress(PermissionError):  # root alone gives files to others
                os.chown(name, user, group)
        shutil.copymode(path, name)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have the errors of what is written to an open file say which it is, as those of opening it do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def decode(lines: Iterable[bytes]) -> tuple[list[Event], int]:
    """The events of lines, and how many lines were damaged."""
    events: list[Event] = []
    damaged, rest = 0, iter(lines)
    while portion := list(itertools.islice(rest, _AT_ONCE)):
        sound = []
        for line in portion:
            body = line.strip()
            if not body:
                continue
            check, _, text = body.partition(b" ")
            if b"%08x" % zlib.crc32(text) == check:
                sound.append(text)
            else:
                damaged += 1
        events += json.loads(b"[" + b",".join(sound) + b"]")
    return events, damaged


def encode(events: Iterable[Event]) -> bytes:
    """The lines of events."""
    texts = (json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() for event in events)
    return b"".join(b"%08x %b\n" % (zlib.crc32(text), text) for text in texts)
