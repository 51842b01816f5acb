"""Load is what it says: clients side by side, latency from the moment due, CPU of the whole group."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.load import closed_loop, group_cpu, open_loop


def connecting(send):
    """A connection whose every request is `send`."""
    return lambda: contextlib.nullcontext(send)


def test_each_client_of_a_closed_loop_asks_again_only_when_it_was_answered():
    under_way, most, lock = 0, 0, threading.Lock()

    def send(request):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1

    load = closed_loop(connecting(send), ["a", "b"], clients=3, seconds=2, cpu=lambda: 0.0)
    assert most == 3
    assert 3 <= len(load.latency) <= 3 * (load.span / 0.01)
    assert (load.latency >= 0.01).all()


def test_an_open_loop_charges_the_wait_behind_a_slow_reply():
    load = open_loop(
        connecting(lambda request: time.sleep(0.05)), ["a"], rate=100, seconds=0.2, cpu=lambda: 0.0, clients=1
    )
    assert len(load.latency) == 20
    # The last is due after 0.19 s and answered after 20 x 0.05 s.
    assert load.latency[-1] > 0.7


def test_requests_are_asked_in_turn():
    asked = []
    open_loop(connecting(asked.append), ["a", "b"], rate=1000, seconds=0.01, cpu=lambda: 0.0, clients=1)
    assert asked == ["a", "b"] * 5


def test_the_cpu_of_a_load_is_what_was_used_meanwhile():
    readings = iter([3.0, 3.5])
    load = open_loop(connecting(lambda r: None), ["a"], rate=100, seconds=0.1, cpu=lambda: next(readings))
    assert load.cpu == 0.5


def test_a_client_that_fails_fails_the_load():
    def broken(request):
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        closed_loop(connecting(broken), ["a"], clients=2, seconds=0.1, cpu=lambda: 0.0)


def test_cpu_of_a_group_counts_its_processes_and_their_ended_threads():
    child = (
        "import subprocess, sys, threading, time\n"
        "spin = 'import time\\nwhile time.process_time() < .2: pass\\nprint(flush=True)\\ntime.sleep(60)'\n"
        "other = subprocess.Popen([sys.executable, '-c', spin], stdout=subprocess.PIPE)\n"
        "def work():\n"
        "    while time.thread_time() < .2: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "other.stdout.readline(); print(flush=True); time.sleep(60)"
    )
    group = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert group.stdout.readline()
        assert group_cpu(group.pid) >= 0.35
    finally:
        os.killpg(group.pid, 9)
        group.communicate()
