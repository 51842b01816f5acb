"""Work in processes, each on its share of the cores.

This module imports nothing that counts cores, for its workers must be kept to theirs before anything does.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Part = TypeVar("Part")
Made = TypeVar("Made")


def side_by_side(run: Callable[[Part], Made], parts: Sequence[Part], jobs: int) -> Iterator[Made]:
    """What `run` makes of each part, in their order, as soon as it and those before it are made.

    Args:
        run: a function of a module; it, its parts and what it makes cross between processes.
        jobs: processes that run at a time.
    """
    context = get_context("spawn")
    cores: Any = context.Queue()
    # Where the system has no such call the processes share all cores.
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for job in range(jobs):
        cores.put(mine[job % len(mine) :: jobs] if mine else [])
    with ProcessPoolExecutor(jobs, context, _stay, (cores,)) as pool:
        yield from pool.map(run, parts)


def _stay(cores: Any) -> None:
    if mine := cores.get():
        os.sched_setaffinity(0, mine)
