"""Folders that appear and go whole, and that are never somebody else's."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUse(OSError):
    """A folder in which another process works, or that holds something of another kind; the text says so."""


@contextmanager
def held(folder: Path, refusal: Exception) -> Iterator[None]:
    """Hold a folder against all others that ask the same; raises `refusal` where somebody holds it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield


@contextmanager
def only_user(folder: Path, advice: str) -> Iterator[None]:
    """Hold `folder`, made where it does not exist, against other processes that ask the same.

    Args:
        advice: what to do instead, the end of the message of `FolderInUse`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, FolderInUse(f"another process works in {folder}; {advice}")):
        yield


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


def replace(fresh: Path, folder: Path) -> None:
    """Put the folder `fresh` where `folder` is or will be; what was there is back if that fails."""
    old = _old(folder)
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Take away `folder`, where there is one: its name at once, so that no part of it is left there."""
    if folder.exists():
        folder.rename(_old(folder))
    shutil.rmtree(_old(folder), ignore_errors=True)


def tidy(folder: Path) -> None:
    """Finish what a killed `replace` or `remove` of `folder` began; ask while no other process works there.

    A `folder` that was moved aside and not replaced is back.
    """
    for old in sorted(folder.parent.glob(f".{folder.name}.*.old")):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.old")
