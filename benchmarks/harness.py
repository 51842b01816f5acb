"""What every benchmark shares: sides that take turns, medians with their spread, files and tables.

A side is anything that does the work once and says what it cost. Sides take turns, so that a machine that
other programs use slows all of them alike; wall and CPU time are both kept, and on such a machine the CPU
time, of all threads, is the one to trust.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TextIO

from market.files import as_json, write_json
from market.machine import cores

PEERS = Path(__file__).parent / "peers"

CALLED = ("case", "load", "part", "side")
"""Columns of a table that say what was measured; all others are numbers."""

ANSWERS = "PASAR_ANSWERS"
"""Environment variable of a peer: number of the open file that its answers go to."""


class BenchmarkError(ValueError):
    """A benchmark that cannot run or go on; the text says what to do."""


@dataclass(frozen=True)
class Cost:
    """What doing the work once took: wall and CPU time, of all threads (s)."""

    wall: float
    cpu: float


Side = Callable[[], Cost]


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the runs."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


class Line(Protocol):
    """One line of a table."""

    def cells(self) -> dict[str, str]:
        """What stands in it, by the heads of its columns."""


@dataclass(frozen=True)
class Result:
    """One line of a table: a case done by one side.

    Attributes:
        case: what was done, such as "transform, integer keys".
        rows: rows it was done to.
        side: who did it.
        runs: measurements behind the figures.
        wall: s.
        cpu: s, of all threads.
        times_ours: median CPU time over that of the case's first side, which is ours.
        times_ours_wall: the same of wall time.
    """

    case: str
    rows: int
    side: str
    runs: int
    wall: Spread
    cpu: Spread
    times_ours: float
    times_ours_wall: float

    def cells(self) -> dict[str, str]:
        spread = f"{seconds(self.cpu.median)} ({seconds(self.cpu.least)} to {seconds(self.cpu.greatest)})"
        return {
            "case": self.case,
            "rows": f"{self.rows:,}",
            "side": self.side,
            "CPU time (least to greatest)": spread,
            "wall time": seconds(self.wall.median),
            "CPU, times ours": f"{self.times_ours:.3g}",
            "runs": f"{self.runs}",
        }


@dataclass(frozen=True)
class Served:
    """One line of a table of serving: requests under one kind of load, answered by one side.

    Attributes:
        case: the kind of load.
        side: who answered.
        users: in each request.
        clients: asking side by side.
        requests: measurements behind the figures.
        p50, p99: of the latency (s); NaN where none was answered.
        rate: requests answered a second.
        cpu: of all processes of the side, for each request (s); NaN where none was answered.
    """

    case: str
    side: str
    users: int
    clients: int
    requests: int
    p50: float
    p99: float
    rate: float
    cpu: float

    def cells(self) -> dict[str, str]:
        return {
            "load": self.case,
            "users": f"{self.users}",
            "clients": f"{self.clients}",
            "side": self.side,
            "p50": seconds(self.p50),
            "p99": seconds(self.p99),
            "requests/s": f"{self.rate:,.0f}",
            "CPU a request": seconds(self.cpu),
        }


def timed(work: Callable[[], object], *, at_least: float = 0.2) -> Side:
    """A side that calls `work` in this process, repeatedly until a measurement lasts `at_least` seconds."""
    calls = 0

    def side() -> Cost:
        nonlocal calls
        if not calls:
            once = _measured(work, 1).wall
            calls = 1 if once >= at_least else min(int(at_least / once) + 1, 2000)
        return _measured(work, calls)

    return side


def timed_once(work: Callable[[], object]) -> Side:
    """A side that calls `work` in this process once a turn, for work that goes on from where it was."""
    return lambda: _measured(work, 1)


def _measured(work: Callable[[], object], calls: int) -> Cost:
    """What one call costs, on average over `calls`."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    return Cost((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)


def compare(
    case: str,
    rows: int,
    sides: Mapping[str, Side],
    *,
    repeats: int = 5,
    budget_s: float = 45.0,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Let the sides of a case take turns.

    Args:
        case: what they do.
        rows: how many rows they do it to.
        sides: by name; the first is ours, and the others are told as multiples of it.
        repeats: turns; before them each side runs once unmeasured.
        budget_s: a side that has run for longer than this has no further turn (s).
        report: called with a line as each side of the case is known.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    warm: dict[str, Cost] = {}
    spent = dict.fromkeys(sides, 0.0)
    for turn in range(repeats + 1):
        for name, side in sides.items():
            if spent[name] > budget_s:
                continue
            before = time.perf_counter()
            cost = side()
            # What a side says may be of one of the many calls of its turn.
            spent[name] += max(cost.wall, time.perf_counter() - before)
            if turn == 0:
                warm[name] = cost
            else:
                costs[name].append(cost)
    for name, cost in warm.items():
        # Too slow for a second turn: the only run counts, and `runs` says so.
        costs[name] = costs[name] or [cost]
    results: list[Result] = []
    for name, runs in costs.items():
        wall, cpu = Spread.of([c.wall for c in runs]), Spread.of([c.cpu for c in runs])
        ours = results[0] if results else None
        results.append(
            Result(
                case,
                rows,
                name,
                len(runs),
                wall,
                cpu,
                cpu.median / ours.cpu.median if ours else 1.0,
                wall.median / ours.wall.median if ours else 1.0,
            )
        )
        report(
            f"{case}, {rows:,} rows, {name}: CPU {seconds(cpu.median)}, {results[-1].times_ours:.1f} x ours"
        )
    return results


def seconds(value: float) -> str:
    """A time in the unit that reads best, with three digits; nothing where it is NaN."""
    if math.isnan(value):
        return ""
    if value >= 999.5:
        return f"{value:,.0f} s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 0.9995:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.2g} µs"


def table(results: Sequence[Line]) -> str:
    """The results as a Markdown table, a line each; what they are called stands left, and numbers right."""
    cells = [result.cells() for result in results]
    sides = "".join("---|" if name in CALLED else "---:|" for name in cells[0])
    lines = (" | ".join(line) for line in (cells[0], *(one.values() for one in cells)))
    head, *rest = (f"| {line} |" for line in lines)
    return "\n".join([head, f"|{sides}", *rest])


def machine() -> dict[str, Any]:
    """What the benchmark ran on, and how busy others kept it (load: runnable processes, 1 minute mean)."""
    # Not every system has the file; serving alone asks for one that has.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages."""
    return {name: metadata.version(name) for name in packages}


def write_report(
    file: Path,
    benchmark: str,
    settings: Mapping[str, Any],
    before: Mapping[str, Any],
    versions: Mapping[str, Any],
    results: Sequence[Any],
    **more: Any,
) -> None:
    """Write what a benchmark found as JSON; the file appears whole or not at all, and NaN is null there.

    Args:
        before: what `machine` said when the benchmark began.
        results: dataclasses.
        more: what else there is to tell, by name.
    """
    about = {
        "benchmark": benchmark,
        "settings": settings,
        "machine": {**before, "load_after": machine()["load"]},
        "versions": versions,
    }
    write_json(file, about | more | {"results": [as_json(result) for result in results]})


def peer_python(name: str) -> Path:
    """The interpreter of a virtual environment with `peers/<name>.txt`, made when it is first asked for.

    It lies under ~/.cache/pasar-peers (or $XDG_CACHE_HOME), one for each content of the file and Python.

    Raises:
        BenchmarkError: uv is not there, or cannot install the peer.
    """
    requirements = PEERS / f"{name}.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pasar-peers"
    home = cache / f"{name}-{key}"
    if not home.is_dir():
        uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if uv is None:
            raise BenchmarkError("uv is not on the PATH; peers are installed with it: pip install uv")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            new = Path(folder) / "venv"
            for command in (
                [uv, "venv", "--quiet", "--python", sys.executable, str(new)],
                [
                    uv,
                    "pip",
                    "install",
                    "--quiet",
                    "--python",
                    str(new / "bin/python"),
                    "-r",
                    str(requirements),
                ],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise BenchmarkError(f"the peer {name} cannot be installed: {done.stderr.strip()}")
            with contextlib.suppress(FileExistsError, OSError):  # another process was faster
                new.rename(home)
    return home / "bin" / "python"


class Peer:
    """A script of `peers/` in a process of its own, which does one piece of work for each line it is sent."""

    def __init__(self, process: subprocess.Popen[str], answers: TextIO, name: str) -> None:
        self._process = process
        self._answers = answers
        self._name = name

    def ask(self, work: str, **arguments: Any) -> dict[str, Any]:
        """Have a piece of work done and return what the script says about it.

        Raises:
            BenchmarkError: the script failed; its standard error has gone to ours.
        """
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"work": work, **arguments}) + "\n")
            self._process.stdin.flush()
        answer = self._answers.readline()
        if not answer:
            raise BenchmarkError(
                f"the peer {self._name} ended while it was asked to {work}; see its error above"
            )
        return json.loads(answer)

    def side(self, work: str, **arguments: Any) -> Side:
        """A side that has the peer do a piece of work, timed by the peer itself."""

        def side() -> Cost:
            answer = self.ask(work, **arguments)
            return Cost(answer["wall"], answer["cpu"])

        return side


@contextlib.contextmanager
def peer(script: str, python: Path, *arguments: str) -> Iterator[Peer]:
    """Run a script of `peers/` for the length of the block."""
    # Answers have a pipe of their own: some libraries print to standard output while they are imported.
    answers, end = os.pipe()
    process = subprocess.Popen(
        [str(python), str(PEERS / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=2,
        text=True,
        env={**os.environ, ANSWERS: str(end)},
        pass_fds=[end],
    )
    os.close(end)
    try:
        with open(answers, encoding="utf-8") as lines:
            yield Peer(process, lines, script)
    finally:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
