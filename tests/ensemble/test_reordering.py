"""The slate is a greedy choice by value and difference; caps hold while they can, and reasons are true."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import Code, RequestError
from ensemble.plan import Plan
from ensemble.stages.reordering import Reason, Reordering
from tests.ensemble import synthetic

SEEDS = st.integers(1, 15)
NUMBERS = st.integers(0, 10**6)
DIVERSITY = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))


def ask(release, seed, rows, diversity=0.2):
    """Random distinct candidates of each row, -1 behind them; row 0 has none."""
    random, plan = np.random.default_rng(seed), Plan.of(release)
    contents, size = len(release.array("text_content_id.npy")), plan.config.candidates
    candidates = np.full((rows, size), -1)
    for row in range(1, rows):
        count = int(random.integers(0, min(size, contents) + 1))
        candidates[row, :count] = random.permutation(contents)[:count]
    return {
        "candidates": candidates,
        "retrieval_score": random.normal(size=candidates.shape).astype(np.float32),
        "channel": random.integers(1, 4, candidates.shape).astype(np.int32),
        "probabilities": random.random((*candidates.shape, len(plan.tasks))).astype(np.float32),
        "diversity": np.full(rows, diversity, np.float32),
    }


class Row:
    """One request with what the stage chose of it, as Python values."""

    def __init__(self, release, request, made, row):
        config = Plan.of(release).config
        weights = np.array([config.weights[task] for task in Plan.of(release).tasks])
        ids = release.array("text_content_id.npy").tolist()
        present = [int(c) for c in request["candidates"][row] if c >= 0]
        worth = request["probabilities"][row, : len(present)] @ weights
        self.value = dict(zip(present, worth.tolist()))
        best = sorted(range(len(present)), key=lambda place: -np.float32(worth[place]))
        self.pool = [present[place] for place in best[: config.pool]]
        self.slate = [ids.index(c) for c in made["content_id"][row] if c]
        self.reasons = [Reason(int(r)) for r in made["slate_reason"][row][: len(self.slate)]]
        self.groups = [release.array("seller_code.npy"), release.array("category_code.npy")]
        self.caps = (config.seller_cap, config.category_cap)
        self.vectors = release.array("content_vectors.npy")

    def steps(self):
        """Each place: the item, its reason, what was left of the pool, and what of that the caps allowed."""
        for place, (item, reason) in enumerate(zip(self.slate, self.reasons)):
            left = [c for c in self.pool if c not in self.slate[:place]]
            within = [c for c in left if not self.capped(c, self.slate[:place])]
            yield item, reason, left, within

    def capped(self, content, above):
        return any(
            group[content] >= 0 and sum(group[c] == group[content] for c in above) >= cap
            for group, cap in zip(self.groups, self.caps)
        )

    def likeness(self, content, above):
        return max((float(self.vectors[content] @ self.vectors[c]) for c in above), default=0.0)


def rows_of(worlds, world, seed, diversity):
    release = worlds(world)
    request = ask(release, seed, 4, diversity)
    made = Reordering(release)(**request)
    return [Row(release, request, made, row) for row in range(4)], Plan.of(release).config, made


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=60, deadline=None)
def test_a_slate_holds_distinct_items_of_the_pool_and_is_as_long_as_it_can_be(worlds, world, seed, diversity):
    rows, config, made = rows_of(worlds, world, seed, diversity)
    for number, row in enumerate(rows):
        assert len(set(row.slate)) == len(row.slate) == min(config.slate, len(row.pool))
        assert set(row.slate) <= set(row.pool)
        assert (made["content_id"][number, len(row.slate) :] == "").all()
        assert not made["slate_value"][number, len(row.slate) :].any()
        assert not made["slate_retrieval_rank"][number, len(row.slate) :].any()


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=60, deadline=None)
def test_a_cap_is_broken_only_when_nothing_else_is_left(worlds, world, seed, diversity):
    for row in rows_of(worlds, world, seed, diversity)[0]:
        for item, _, _, within in row.steps():
            assert item in within or not within


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=60, deadline=None)
def test_reasons_are_true(worlds, world, seed, diversity):
    for row in rows_of(worlds, world, seed, diversity)[0]:
        for item, reason, left, within in row.steps():
            best = left[0]  # the pool is sorted by value
            if reason is Reason.VALUE:
                assert item == best
            elif reason is Reason.DIVERSITY:
                assert item != best
                assert best in within or not within
            else:
                assert item in within
                assert best not in within


@given(SEEDS, NUMBERS)
@settings(max_examples=40, deadline=None)
def test_without_diversity_each_place_has_the_highest_value_that_the_caps_allow(worlds, world, seed):
    for row in rows_of(worlds, world, seed, 0.0)[0]:
        for item, reason, left, within in row.steps():
            assert item == (within or left)[0]
            assert reason is not Reason.DIVERSITY


@given(SEEDS, NUMBERS)
@settings(max_examples=40, deadline=None)
def test_with_full_diversity_each_place_is_the_least_like_those_above(worlds, world, seed):
    for row in rows_of(worlds, world, seed, 1.0)[0]:
        if row.slate:
            assert row.slate[0] == row.pool[0]
        for place, (item, _, left, within) in enumerate(row.steps()):
            above = row.slate[:place]
            least = min(row.likeness(content, above) for content in within or left)
            assert row.likeness(item, above) == least


@given(SEEDS, NUMBERS, st.sampled_from([0.3, 0.7]))
@settings(max_examples=40, deadline=None)
def test_each_place_has_the_best_mix_of_value_and_difference(worlds, world, seed, diversity):
    for row in rows_of(worlds, world, seed, diversity)[0]:
        values = [row.value[content] for content in row.pool]
        span = max(values) - min(values) if values else 0

        def gain(content, above, row=row, values=values, span=span):
            worth = (row.value[content] - min(values)) / span if span > 1e-9 else 0
            return (1 - diversity) * worth - diversity * row.likeness(content, above)

        for place, (item, _, left, within) in enumerate(row.steps()):
            above = row.slate[:place]
            best = max(gain(content, above) for content in within or left)
            assert gain(item, above) == pytest.approx(best, abs=1e-5)


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=40, deadline=None)
def test_the_order_of_candidates_does_not_change_the_slate(worlds, world, seed, diversity):
    release = worlds(world)
    stage, request = Reordering(release), ask(release, seed, 3, diversity)
    random = np.random.default_rng(seed)
    shuffled = {name: array.copy() for name, array in request.items()}
    for row in range(3):
        order = random.permutation(request["candidates"].shape[1])
        for name in ("candidates", "retrieval_score", "channel", "probabilities"):
            shuffled[name][row] = request[name][row][order]
    before, after = stage(**request), stage(**shuffled)
    for name in set(before) - {"slate_retrieval_rank"}:
        np.testing.assert_array_equal(before[name], after[name], name)


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=30, deadline=None)
def test_a_batch_has_the_slates_of_its_requests_one_by_one(worlds, world, seed, diversity):
    release = worlds(world)
    stage, request = Reordering(release), ask(release, seed, 5, diversity)
    batch = stage(**request)
    alone = [stage(**{name: array[[row]] for name, array in request.items()}) for row in range(5)]
    for name, array in batch.items():
        np.testing.assert_array_equal(array, np.concatenate([one[name] for one in alone]), name)


def test_an_item_carries_what_each_stage_said_of_it(worlds):
    release = worlds(4)
    request = ask(release, 2, 4)
    made = Reordering(release)(**request)
    ids = release.array("text_content_id.npy").tolist()
    weights = np.array([synthetic.WEIGHTS[task] for task in synthetic.TASKS])
    checked = 0
    for row, place in np.argwhere(made["content_id"] != ""):
        rank = made["slate_retrieval_rank"][row, place] - 1
        assert ids.index(made["content_id"][row, place]) == request["candidates"][row, rank]
        for name in ("retrieval_score", "channel", "probabilities"):
            np.testing.assert_array_equal(made[f"slate_{name}"][row, place], request[name][row, rank])
        value = request["probabilities"][row, rank] @ weights
        assert made["slate_value"][row, place] == pytest.approx(value, rel=1e-6)
        checked += 1
    assert checked


@pytest.mark.parametrize("diversity", [-0.01, 1.01, -5.0])
def test_a_diversity_outside_0_to_1_is_refused_with_its_row(worlds, diversity):
    request = ask(worlds(4), 2, 3)
    request["diversity"][1] = diversity
    with pytest.raises(RequestError, match="at row 1; send 0 to 1") as caught:
        Reordering(worlds(4))(**request)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_every_reason_has_words_of_its_own():
    assert len({reason.text for reason in Reason}) == len(Reason)
