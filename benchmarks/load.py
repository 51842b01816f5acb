"""Load on a server: clients that ask one after another, or arrivals at a fixed rate; and what it cost."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Send = Callable[[Any], object]
"""Sends one request and returns when its reply is complete."""

Connect = Callable[[], AbstractContextManager[Send]]
"""Opens a connection of its own for one client."""

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What a period of load gave.

    Attributes:
        latency: float64[n], of each request that was answered, client by client (s).
        span: from the first request to the last reply (s).
        cpu: that the server's processes used meanwhile (s).
    """

    latency: np.ndarray
    span: float
    cpu: float


def group_cpu(group: int) -> float:
    """CPU time that the processes of a group, with their ended threads, have used so far (s)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command may hold blanks and brackets; the fields after it are numbers.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_S


def closed_loop(
    connect: Connect, requests: Sequence[Any], clients: int, seconds: float, cpu: Callable[[], float]
) -> Load:
    """Clients side by side, each asking anew as soon as it was answered.

    Args:
        connect: opens the connection of one client.
        requests: asked in turn, over and over.
        clients: how many.
        seconds: after which no client asks again.
        cpu: the server's CPU time so far (s).
    """
    numbers = itertools.count()

    def ask(send: Send, start: float, latency: list[float]) -> None:
        while (before := time.perf_counter()) < start + seconds:
            send(requests[next(numbers) % len(requests)])
            latency.append(time.perf_counter() - before)

    return _run(connect, clients, ask, cpu)


def open_loop(
    connect: Connect,
    requests: Sequence[Any],
    rate: float,
    seconds: float,
    cpu: Callable[[], float],
    clients: int = 64,
) -> Load:
    """Arrivals at a fixed rate, whether or not earlier requests were answered.

    A request's latency counts from the moment that it was due, so a server that falls behind is not spared
    (coordinated omission).

    Args:
        connect, requests, cpu: as for `closed_loop`.
        rate: arrivals a second, evenly spaced.
        seconds: for which requests arrive.
        clients: requests that may be under way at once.
    """
    numbers = itertools.count()

    def ask(send: Send, start: float, latency: list[float]) -> None:
        while (number := next(numbers)) < rate * seconds:
            due = start + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            send(requests[number % len(requests)])
            latency.append(time.perf_counter() - due)

    return _run(connect, clients, ask, cpu)


def _run(
    connect: Connect,
    clients: int,
    ask: Callable[[Send, float, list[float]], None],
    cpu: Callable[[], float],
) -> Load:
    """Run `ask` in a thread for each client; all start at once, when all are connected."""
    ready = threading.Barrier(clients + 1)
    begin: list[float] = []
    latencies: list[list[float]] = [[] for _ in range(clients)]
    faults: list[BaseException] = []

    def client(latency: list[float]) -> None:
        try:
            with connect() as send:
                ready.wait()
                ready.wait()
                ask(send, begin[0], latency)
        except BaseException as fault:
            faults.append(fault)
            ready.abort()

    threads = [threading.Thread(target=client, args=(latency,), daemon=True) for latency in latencies]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
        used = cpu()
        begin.append(time.perf_counter())
        ready.wait()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if faults:
        raise next((f for f in faults if not isinstance(f, threading.BrokenBarrierError)), faults[0])
    return Load(np.concatenate(latencies), time.perf_counter() - begin[0], cpu() - used)
