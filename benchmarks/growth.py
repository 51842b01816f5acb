"""Growth: what simulating, building and serving cost as catalogue and log grow, and the memory they take.

Three worlds, each ten times the one before: the catalogue and the log grow together, a content for each 30
impressions, a user for each 20. Every world runs in a process of its own, so that its peak of memory is its
own; each model is trained for one epoch, as a step's cost is what grows. Serving is the cascade in that
process, 500 → 100 → 10, one BLAS thread.
"""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.harness import BenchmarkError, machine, seconds, versions, write_report

Report = Callable[[str], None]

STEPS_OF_TEN = (100, 10, 1)
IMPRESSIONS_A_CONTENT, IMPRESSIONS_A_USER, CONTENTS_A_SELLER = 30, 20, 20
USERS = (1, 64)
"""Users in a request."""
GIB = 2**30


@dataclass(frozen=True)
class Grown:
    """One line of the table: a part of the way of one world.

    Attributes:
        contents, impressions: of the world.
        part: what was done: "simulate", a step of the build, "build" for all of them, or a request.
        wall, cpu: s, of all threads; of a request, medians.
        resident: highest resident memory of the process while the part ran (bytes); files that are mapped
            count as far as they are in memory.
        anonymous: the same without mapped files, which the system may drop at any time.
    """

    contents: int
    impressions: int
    part: str
    wall: float
    cpu: float
    resident: int
    anonymous: int

    def cells(self) -> dict[str, str]:
        return {
            "contents": f"{self.contents:,}",
            "impressions": f"{self.impressions:,}",
            "part": self.part,
            "wall time": seconds(self.wall),
            "CPU time": seconds(self.cpu),
            "resident": f"{self.resident / GIB:.2f} GiB",
            "without mapped files": f"{self.anonymous / GIB:.2f} GiB",
        }


class Meter:
    """Watches this process: time and highest memory by part."""

    def __init__(self, every_s: float = 0.05) -> None:
        self.parts: list[dict[str, Any]] = []
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self, part: str) -> None:
        """End the part before, and begin this one."""
        self.end()
        now = {"wall": time.perf_counter(), "cpu": time.process_time()}
        self.parts.append({"part": part, "resident": 0, "anonymous": 0, "from": now})

    def end(self) -> None:
        """End the part that runs, if one does."""
        if self.parts and "from" in self.parts[-1]:
            self._look()
            part = self.parts[-1]
            began = part.pop("from")
            part["wall"] = time.perf_counter() - began["wall"]
            part["cpu"] = time.process_time() - began["cpu"]

    def stop(self) -> list[dict[str, Any]]:
        """End, and say what each part took."""
        self.end()
        self._done.set()
        self._thread.join()
        return self.parts

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        if not self.parts:
            return
        part, (resident, anonymous) = self.parts[-1], memory()
        part["resident"] = max(part["resident"], resident)
        part["anonymous"] = max(part["anonymous"], anonymous)


def memory() -> tuple[int, int]:
    """Resident memory of this process, and that of it which no file backs (bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in lines
        if line.startswith(("VmRSS", "RssAnon"))
    }
    return found["VmRSS"], found["RssAnon"]


def grow(
    connection: Connection, contents: int, impressions: int, seed: int, turn_s: float, place: str
) -> None:
    """Simulate, build and serve one world in this process, and send what it took."""
    from threadpoolctl import threadpool_limits

    from benchmarks.serving import POOL, make_requests
    from ensemble.build import BuildConfig, build_release
    from ensemble.cascade import Cascade
    from market.world import World, WorldConfig
    from models.ranker import RankerConfig
    from models.two_tower import TwoTowerConfig

    meter = Meter()
    world = WorldConfig(
        users=impressions // IMPRESSIONS_A_USER,
        contents=contents,
        sellers=max(contents // CONTENTS_A_SELLER, 5),
        impressions=impressions,
        seed=seed,
    )
    meter.begin("simulate")
    data = World(world).write(Path(place) / "data")
    config = BuildConfig(seed=seed, two_tower=TwoTowerConfig(epochs=1), ranker=RankerConfig(epochs=1))
    built = build_release(data, Path(place) / "built", config, step=meter.begin)
    release = built.release
    del built, data
    gc.collect()
    meter.begin("load")
    cascade = Cascade(release)
    meter.end()
    with threadpool_limits(1):
        for users in USERS:
            requests = make_requests(release, users, POOL, seed + users)
            for request in requests[:8]:
                cascade(request)
            meter.begin(f"request of {users}")
            costs: list[tuple[float, float]] = []
            until = time.perf_counter() + turn_s
            while time.perf_counter() < until:
                wall, cpu = time.perf_counter(), time.process_time()
                cascade(requests[len(costs) % POOL])
                costs.append((time.perf_counter() - wall, time.process_time() - cpu))
            meter.end()
            meter.parts[-1] |= dict(zip(("wall", "cpu"), np.median(costs, axis=0).tolist()))
    size = sum(file.stat().st_size for file in release.path.rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    connection.send({"parts": meter.stop(), "release_bytes": size, "peak": peak})


def summed(contents: int, impressions: int, parts: list[dict[str, Any]]) -> list[Grown]:
    """The parts as lines, and the build as one."""
    lines = [Grown(contents, impressions, **part) for part in parts]
    names = [line.part for line in lines]
    steps = lines[names.index("simulate") + 1 : names.index("load")]
    build = Grown(
        contents,
        impressions,
        "build",
        sum(step.wall for step in steps),
        sum(step.cpu for step in steps),
        max(step.resident for step in steps),
        max(step.anonymous for step in steps),
    )
    return [*lines, build]


def plot(results: list[Grown], file: Path) -> None:
    """Time, memory and requests against the size of the world, as a figure of three panels."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, memories, requests) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")

    def line(axes: Any, part: str, across: str, value: Callable[[Grown], float], label: str) -> None:
        found = [r for r in results if r.part == part]
        axes.plot([getattr(r, across) for r in found], [value(r) for r in found], marker="o", label=label)

    for part in ("simulate", "build"):
        line(times, part, "impressions", lambda r: r.cpu / 60, part)
    line(memories, "build", "impressions", lambda r: r.resident / GIB, "resident")
    line(memories, "build", "impressions", lambda r: r.anonymous / GIB, "without mapped files")
    memories.axhline(8, color="grey", linestyle=":", label="8 GiB")
    for users in USERS:
        line(
            requests,
            f"request of {users}",
            "contents",
            lambda r: r.cpu * 1e3,
            f"{users} user{'s' * (users > 1)}",
        )
    for axes in (times, requests):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    memories.set_ylim(0)
    for axes, title, x, y in (
        (times, "Simulating and building", "impressions", "CPU minutes"),
        (memories, "Memory of a build", "impressions", "GiB"),
        (requests, "A request in process", "contents", "CPU ms"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y, xscale="log")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)


def run(
    *,
    rows: int = 30_000_000,
    repeats: int = 5,
    seed: int = 0,
    file: Path | None = None,
    report: Report = print,
) -> list[Grown]:
    """Run the benchmark, the smallest world first.

    Args:
        rows: impressions of the largest world; the others have a tenth and a hundredth.
        repeats: seconds of requests of each size.
        seed: of the worlds, the models and the requests.
        file: where the report goes as JSON, after each world, and beside it the figure, as SVG.
        report: called with a line as each figure is known.

    Raises:
        BenchmarkError: the process of the smallest world ended before it was done.
    """
    before = machine()
    results: list[Grown] = []
    worlds = []
    for part in STEPS_OF_TEN:
        impressions = rows // part
        contents = max(impressions // IMPRESSIONS_A_CONTENT, 100)
        with tempfile.TemporaryDirectory(prefix="pasar-growth-", dir=os.environ.get("TMPDIR")) as place:
            here, there = get_context("spawn").Pipe(duplex=False)
            process = get_context("spawn").Process(
                target=grow, args=(there, contents, impressions, seed, float(repeats), place)
            )
            process.start()
            there.close()
            try:
                said = here.recv()
            except EOFError:
                process.join()
                ended = f"{contents:,} contents, {impressions:,} impressions: ended by {process.exitcode}"
                if not results:
                    raise BenchmarkError(f"{ended}, see its error above; nothing was measured") from None
                report(ended)
                break
            process.join()
        lines = summed(contents, impressions, said.pop("parts"))
        worlds.append({"contents": contents, "impressions": impressions, **said})
        results += lines
        for line in lines:
            report(
                f"{contents:,} contents, {impressions:,} impressions, {line.part}: CPU {seconds(line.cpu)}, "
                f"{line.resident / GIB:.2f} GiB, {line.anonymous / GIB:.2f} without mapped files"
            )
        if file:
            settings = {"rows": rows, "repeats": repeats, "seed": seed}
            installed = versions("numpy", "pandas", "tensorflow-cpu", "onnxruntime", "faiss-cpu")
            write_report(file, "growth", settings, before, installed, results, worlds=worlds)
            plot(results, file.with_suffix(".svg"))
    return results
