import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import Code, RequestError
from ensemble.steps import TensorSpec
from ensemble.triton import BatchedStage

NAME = TensorSpec("name", str)
SEEN = TensorSpec("seen", np.int64, (-1,), pad=-1)
TAGS = TensorSpec("tags", str, (-1, -1))
COUNT = TensorSpec("count", np.int64)
LABEL = TensorSpec("label", str, (2,))


class Stage:
    """Counts what is not padding and keeps the sizes of its runs."""

    def __init__(self):
        self.runs = []

    def __call__(self, name, seen, tags):
        self.runs.append(len(name))
        if "stranger" in name:
            raise RequestError(Code.NOT_FOUND, "user 'stranger' is not known")
        if "breaks" in name:
            raise KeyError("/etc/secret")
        count = (seen != -1).sum(1) + (tags != "").sum((1, 2))
        return {"count": count, "label": np.array([[f"{n}!", "ü"] for n in name])}


def batched(stage, log=None, outputs=(COUNT, LABEL)):
    return BatchedStage("count", stage, (NAME, SEEN, TAGS), outputs, (log if log is not None else []).append)


def request(*names, seen=0, tags=(0, 0)):
    rows = len(names)
    return {
        "name": np.array(names, object),
        "seen": np.full((rows, seen), 4),
        "tags": np.full((rows, *tags), "t", object),
    }


requests = st.builds(
    lambda rows, seen, tags: request(*(f"n{i}" for i in range(rows)), seen=seen, tags=tags),
    st.integers(1, 3),
    st.integers(0, 4),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)


@given(st.lists(requests, min_size=1, max_size=5))
def test_requests_of_any_lengths_run_at_once_and_get_what_they_would_get_alone(batch):
    stage = Stage()
    together = batched(stage).run(batch)
    assert stage.runs == [sum(len(r["name"]) for r in batch)]
    for one, reply in zip(batch, together):
        [alone] = batched(Stage()).run([one])
        assert set(reply) == {"count", "label"}
        for name in reply:
            np.testing.assert_array_equal(reply[name], alone[name])


def test_only_the_request_at_fault_is_refused():
    stage = Stage()
    first, fault, last = batched(stage).run([request("ana"), request("stranger"), request("bo", seen=2)])
    assert (fault.code, fault.message) == (Code.NOT_FOUND, "user 'stranger' is not known")
    assert first["count"].tolist() == [0]
    assert last["count"].tolist() == [2]
    assert stage.runs == [3, 1, 1, 1]


def test_a_request_that_breaks_the_contract_does_not_reach_the_stage():
    stage = Stage()
    bad = {**request("ana"), "seen": np.zeros((1, 2), np.float32)}
    fault, sound = batched(stage).run([bad, request("bo")])
    assert fault.code is Code.INVALID_ARGUMENT
    assert sound["label"].tolist() == [["bo!", "ü"]]
    assert stage.runs == [1]


def test_an_unexpected_failure_is_logged_and_never_shown():
    log = []
    fault, sound = batched(Stage(), log).run([request("breaks"), request("bo")])
    assert (fault.code, fault.message) == (Code.INTERNAL, "stage 'count' failed; see the server log")
    assert sound["count"].tolist() == [0]
    assert all("Traceback" in text and "/etc/secret" in text for text in log)
    assert log


@dataclass
class Counted:
    count: np.ndarray
    label: np.ndarray


def test_a_stage_may_return_a_dataclass():
    [reply] = batched(lambda name, seen, tags: Counted(np.arange(1), np.array([["a", "b"]]))).run(
        [request("x")]
    )
    assert reply["label"].tolist() == [["a", "b"]]


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (None, "it returned NoneType"),
        ({"count": np.zeros(1, np.int64)}, "it returned ['count'], not ['count', 'label']"),
        (
            {"count": np.zeros(1, np.int32), "label": np.array([["a", "b"]])},
            "'count' is int32[1], not int64[B]",
        ),
        (
            {"count": np.zeros(2, np.int64), "label": np.array([["a", "b"]])},
            "'count' is int64[2], not int64[B]",
        ),
        (
            {"count": np.zeros(1, np.int64), "label": np.array([["a"]])},
            "'label' is object[1, 1], not string[B, 2]",
        ),
        (
            {"count": np.zeros(1, np.int64), "label": np.array([["a", None]])},
            "'label' holds something that is no text",
        ),
    ],
)
def test_what_a_stage_returns_is_checked(result, why):
    log = []
    [reply] = batched(lambda **_: result, log).run([request("x")])
    assert reply.code is Code.INTERNAL
    assert why in log[0]


@contextmanager
def echoing(code):
    """A process that holds a dead man's switch, runs `code`, and says what it is told."""
    switch = "from ensemble.triton import DeadMansSwitch; s = DeadMansSwitch(limit_s=3)"
    program = f"{switch}; {code}; print('up', flush=True)"
    command = [sys.executable, "-c", f"{program}; print(input())"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        yield process


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [("...", "", -signal.SIGALRM), ("s.release()", "answer\n", 0)],
    ids=["is ended before it says more", "is not once its switch is released"],
)
def test_a_process_that_stood_still(code, said, status):
    with echoing(code) as process:
        process.send_signal(signal.SIGSTOP)
        process.stdin.write("answer\n")
        process.stdin.flush()
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert (process.stdout.read(), process.wait()) == (said, status)


def test_a_process_that_works_or_waits_goes_on():
    busy = "import time; end = time.monotonic() + 4; any(time.monotonic() > end for _ in iter(int, 1))"
    # The one waits for what it is told while the other works.
    with echoing("...") as waits, echoing(busy) as works:
        for process in (waits, works):
            assert process.communicate("answer\n")[0] == "answer\n"
