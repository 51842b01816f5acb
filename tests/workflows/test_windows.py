"""A live room's labels are what its user did there in the seconds after, in the same part of the log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.build import BuildConfig
from market.dataset import write_dataset
from workflows.examples import TRAIN, VALID, build_examples
from workflows.windows import over_windows

START = 1_770_000_000

impressions = st.lists(
    st.tuples(
        *(st.integers(0, 1) for _ in range(3)),
        st.integers(0, 12),
        st.sampled_from([0.0, 1.0, np.nan]),
        st.sampled_from([0.0, 2.5, 7.0, np.nan]),
        st.booleans(),
    ),
    max_size=25,
)


@given(impressions, st.integers(1, 8))
def test_windows_hold_what_a_loop_over_all_rows_finds(log, window_s):
    columns = np.array(log, np.float64).reshape(len(log), 7).T
    user, content, split, time = columns[:4].astype(np.int64)
    order, watch_s = columns[4:6].astype(np.float32)
    rows = np.flatnonzero(columns[6])
    outcomes = {"order": order, "watch_s": watch_s, "rating": watch_s}
    made = over_windows(outcomes, rows, user, content, START + time, split, window_s)
    expected = {name: values.copy() for name, values in outcomes.items()}
    for row in rows:
        same = (user == user[row]) & (content == content[row]) & (split == split[row])
        here = [k for k in rows if same[k] and 0 <= time[k] - time[row] <= window_s]
        for name, combine in (("order", np.max), ("watch_s", np.sum)):
            known = outcomes[name][here][~np.isnan(outcomes[name][here])]
            expected[name][row] = combine(known) if len(known) else np.nan
    for name in outcomes:
        np.testing.assert_allclose(made[name], expected[name], rtol=1e-6)


@pytest.fixture(scope="module")
def stay(tmp_path_factory):
    """One user's stay in a room, ten minutes long, an impression a minute; the order is in the eighth, the
    watched seconds in each; a video is shown as often."""
    minutes = np.arange(10)
    log = pd.DataFrame(
        {
            "user_id": "u0",
            "content_id": np.repeat(["room", "video"], 10),
            "market": "ID",
            "time": START + 60 * np.tile(minutes, 2),
            "order": np.tile(minutes == 7, 2).astype(np.int8),
            "watch_s": 50.0,
        }
    ).sort_values("time", kind="stable", ignore_index=True)
    contents = {"content_id": ["room", "video"], "kind": ["live", "video"], "markets": [["ID"], ["ID"]]}
    return write_dataset(
        tmp_path_factory.mktemp("stay") / "data",
        name="stay",
        feedback="impressions",
        split="time",
        users=pd.DataFrame({"user_id": ["u0"], "market": ["ID"]}),
        contents=pd.DataFrame(contents),
        impressions=[log],
    )


def labels(stay, folder, window_s: int, content: int, outcome: str) -> np.ndarray:
    examples = build_examples(stay, folder, history_length=3, seen_length=3, live_window_s=window_s)
    shown = examples.pairs.content == content
    return np.asarray(examples.pairs.outcomes[outcome])[shown]


def test_an_order_is_the_label_of_the_minutes_before_it_and_of_rooms_alone(stay, tmp_path):
    plain = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    np.testing.assert_array_equal(labels(stay, tmp_path / "0", 0, 0, "order"), plain)
    np.testing.assert_array_equal(
        labels(stay, tmp_path / "1", 150, 0, "order"), [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    )
    np.testing.assert_array_equal(labels(stay, tmp_path / "2", 150, 1, "order"), plain)


def test_watched_seconds_add_up_and_end_with_the_part_of_the_log(stay, tmp_path):
    examples = build_examples(stay, tmp_path, history_length=3, seen_length=3, live_window_s=120)
    pairs = examples.pairs
    room = pairs.content == 0
    watch_s = np.asarray(pairs.outcomes["watch_s"])
    last = {part: np.flatnonzero(room & (pairs.split == part))[-1] for part in (TRAIN, VALID)}
    assert watch_s[room][:3].tolist() == [150.0] * 3
    assert [watch_s[row] for row in last.values()] == [50.0, 50.0]


def test_what_a_history_holds_is_the_event_itself(stay, tmp_path):
    plain, wide = (
        build_examples(stay, tmp_path / str(window), history_length=3, seen_length=3, live_window_s=window)
        for window in (0, 600)
    )
    np.testing.assert_array_equal(plain.queries.history, wide.queries.history)
    np.testing.assert_array_equal(plain.pairs.positive, wide.pairs.positive)


def test_a_window_needs_times_and_cannot_be_negative(stay, tmp_path):
    log = stay.impressions().drop(columns="time").assign(split="train")
    timeless = write_dataset(
        tmp_path / "data",
        name="timeless",
        feedback="impressions",
        split="given",
        users=stay.users(),
        contents=stay.contents(),
        impressions=[log],
    )
    with pytest.raises(ValueError, match="live_window_s needs a `time` column"):
        labels(timeless, tmp_path / "work", 60, 0, "order")
    with pytest.raises(ValueError, match="live_window_s is -1"):
        replace(BuildConfig(), live_window_s=-1)
