"""Parts run side by side in processes, and end when whoever asked for them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluation.side_by_side import side_by_side

STOPPED = """
import signal, sys, time
from pathlib import Path
from evaluation.side_by_side import side_by_side

def wait(folder):
    mark = Path(folder)
    mark.write_text("running")
    try:
        time.sleep(600)
    finally:
        mark.unlink()

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    list(side_by_side(wait, sys.argv[1:], 2))
"""


def double(value: int) -> int:
    time.sleep(0.2 / value)
    return 2 * value


def test_parts_come_in_their_order_whichever_ends_first():
    assert list(side_by_side(double, [1, 2, 3, 4], 2)) == [2, 4, 6, 8]


def test_what_a_part_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(double, [0, 1], 2))


def ended(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_process_that_the_system_ends_is_told_of_with_what_to_do():
    with pytest.raises(ChildProcessError, match=r"one of 2 processes .* for want of memory; run fewer"):
        list(side_by_side(ended, [signal.SIGKILL], 2))


def cores(mark: Path) -> set[int]:
    """The cores of this process, once another one has taken the other part."""
    mark.touch()
    wait_until(lambda: len(list(mark.parent.iterdir())) == 2)
    return os.sched_getaffinity(0)


def test_each_process_has_its_share_of_the_cores(tmp_path):
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(ours) < 2:
        pytest.skip("one core, or none that a process can be kept to")
    one, other = side_by_side(cores, [tmp_path / name for name in ("first", "second")], 2)
    assert one
    assert other
    assert not one & other
    assert one | other == ours


def test_sigterm_ends_the_parts_that_run_and_they_clean_up(tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    marks = [tmp_path / name for name in ("first", "second", "third")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), *map(str, marks)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: marks[0].exists() and marks[1].exists())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    wait_until(lambda: not any(mark.exists() for mark in marks))


def wait_until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
