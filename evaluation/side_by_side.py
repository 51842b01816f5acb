"""Work in processes, each on its share of the cores.

This module imports nothing that counts cores, for its workers must be kept to theirs before anything does.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

Part = TypeVar("Part")
Made = TypeVar("Made")


def side_by_side(run: Callable[[Part], Made], parts: Sequence[Part], jobs: int) -> Iterator[Made]:
    """What `run` makes of each part, in their order, as soon as it and those before it are made.

    Whoever stops the iteration, by an exception or a signal, stops the parts that are running, which end as
    after SIGTERM: what they had opened is closed.

    Args:
        run: a function of a module; it, its parts and what it makes cross between processes.
        jobs: processes that run at a time.

    Raises:
        ChildProcessError: a process was ended from outside, such as for the memory that it took.
    """
    context = get_context("spawn")
    cores: Any = context.Queue()
    # Where the system has no such call the processes share all cores.
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for job in range(jobs):
        cores.put(mine[job % len(mine) :: jobs] if mine else [])
    others = set(active_children())
    with ProcessPoolExecutor(jobs, context, _stay, (cores,)) as pool:
        try:
            yield from pool.map(partial(_made, run), parts)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError(
                    f"one of {jobs} processes that worked side by side was ended by the system, mostly for "
                    "want of memory; run fewer at a time"
                ) from error
            raise


def _stay(cores: Any) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if mine := cores.get():
        os.sched_setaffinity(0, mine)


def _made(run: Callable[[Part], Made], part: Part) -> Made:
    try:
        return run(part)
    except SystemExit as end:
        # What the part had opened is closed by now; the pool would go on with the next one.
        os._exit(int(end.code or 0))
