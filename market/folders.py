"""Folders that appear and go whole, and that are never somebody else's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(OSError):
    """A folder in which another process works, that holds something of another kind, or that is a link to
    nothing; the text says so."""


@contextmanager
def held(folder: Path, refusal: Exception) -> Iterator[None]:
    """Hold a folder against all others that ask the same; raises `refusal` where somebody holds it, or is
    just taking it away (`written_whole`)."""
    try:
        lock = (folder / ".lock").open("w")
    except FileNotFoundError:
        raise refusal from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        if not os.fstat(lock.fileno()).st_nlink:
            raise refusal
        yield


@contextmanager
def only_user(folder: Path, advice: str) -> Iterator[None]:
    """Hold `folder`, made where it does not exist, against other processes that ask the same.

    Args:
        advice: what to do instead, the end of the message of `FolderInUse`.
    """
    _expect_no_dead_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, FolderInUse(f"another process works in {folder}; {advice}")):
        yield


def _expect_no_dead_link(folder: Path) -> None:
    if folder.is_symlink() and not folder.exists():
        raise FolderInUse(f"{folder} is a link that leads nowhere; delete it, or make what it leads to")


def expect_own(folder: Path, mark: str, advice: str) -> None:
    """Raise `FolderInUse` where `folder` is something else than a folder with a file `mark`, or an empty one.

    Args:
        mark: a name in the folder, or a pattern.
        advice: as for `only_user`.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not any(folder.glob(mark))):
        raise FolderInUse(f"{folder} exists and has no {mark}, so it is not replaced; {advice}")


@contextmanager
def written_whole(folder: Path, advice: str) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` at the end, or vanishes if anything is raised.

    One process at a time writes a `folder`; it first tidies up what killed ones left.

    Args:
        advice: as for `only_user`.
    """
    _expect_no_dead_link(folder)
    work = folder.parent / f".{folder.name}.writing"
    fresh = work / f"{folder.name}.new"
    work.mkdir(parents=True, exist_ok=True)
    with held(work, FolderInUse(f"another process writes {folder}; {advice}")):
        try:
            tidy(folder)
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            yield fresh
            replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            (work / ".lock").unlink(missing_ok=True)  # last: who comes now works in a folder of its own
            with contextlib.suppress(OSError):
                work.rmdir()


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """An empty folder to make what shall be `folder` in; it vanishes at the end, unless it was renamed.

    Any number of processes may make one for the same `folder`. What a killed one left is deleted first: a
    folder that nobody holds, which the system sees to however its maker ended.
    """
    for left in _left(folder, _DRAFT):
        with contextlib.suppress(OSError), _flocked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _delete(left)
    with contextlib.ExitStack() as stack:
        while True:
            draft = _beside(folder, _DRAFT)
            draft.mkdir()
            stack.callback(shutil.rmtree, draft, ignore_errors=True)
            with contextlib.suppress(OSError):  # of a disk without locks, on which nothing is tidied either
                stack.enter_context(_flocked(draft, fcntl.LOCK_SH))
            if draft.exists():  # it was not yet held, and taken for one that is left
                break
        yield draft


@contextmanager
def _flocked(folder: Path, how: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file, or a copy of it where the disk links none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace(fresh: Path, folder: Path) -> None:
    """Put the folder `fresh` where `folder` is or will be; what was there is back if that fails."""
    old = _beside(folder, _OLD)
    try:
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    _discard(old, folder)


def remove(folder: Path) -> None:
    """Take away `folder`, where there is one: its name at once, so that no part of it is left there."""
    _discard(folder, folder)


def tidy(folder: Path) -> None:
    """Finish what a killed `replace` or `remove` of `folder` began, delete what one left `unfinished`; ask
    while no other process works there.

    A `folder` that was moved aside and not replaced is back.
    """
    for old in moved_aside(folder):
        if folder.exists():
            _discard(old, folder)
        else:
            old.rename(folder)
    for rest in _left(folder, _GONE):
        _delete(rest)


def unfinished(folder: Path) -> Path:
    """A name for what shall take the place of `folder`; `tidy` deletes what a killed process left there."""
    return _beside(folder, _GONE)


def moved_aside(folder: Path) -> list[Path]:
    """Where a killed `replace` left what was `folder`: none, or one if each is tidied before the next."""
    return _left(folder, _OLD)


_OLD, _GONE, _DRAFT = "old", "gone", "draft"
"""Ends of the names of what is whole and may come back, of what is being made or deleted by the only one at
work there, and of what is being made by one of several."""


def _beside(folder: Path, end: str) -> Path:
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex}.{end}"


def _left(folder: Path, end: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]+\.{end}")
    there = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return [path for path in there if name.fullmatch(path.name)]


def _discard(path: Path, folder: Path) -> None:
    """Delete `path`, where there is one, under a name by which no half of it is taken for the whole."""
    if path.exists():
        gone = _beside(folder, _GONE)
        path.rename(gone)
        _delete(gone)


def _delete(path: Path) -> None:
    """Delete a folder; of a link to one the link, for what it leads to may be others'."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
