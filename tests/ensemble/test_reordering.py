"""The slate is a greedy choice under declared rules, reasons are true, and propensities are what they say."""

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ensemble.errors import Code, RequestError
from ensemble.explanation import FUNNEL, LOW, Explanation
from ensemble.plan import DIVERSITIES, FILE, LIMITS, Plan, Slot
from ensemble.release import Release, ReleaseWriter
from ensemble.rules import Reason
from ensemble.rules.dpp import JITTER
from ensemble.stages.reordering import CROWDED, Reordering
from market.kinds import KINDS
from tests.ensemble import synthetic

SEEDS = st.integers(1, 25)
NUMBERS = st.integers(0, 10**6)
DIVERSITY = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))


def may_be_shown(release, market):
    """Contents that may be shown in a market at `synthetic.END`, when all have been published."""
    lasting = (release.array("ended_at.npy") > synthetic.END) & (release.array("stock.npy") != 0)
    return np.flatnonzero(lasting & release.array("available.npy")[market])


def ask(release, seed, rows, diversity=0.2):
    """Random distinct candidates of each row, -1 behind them; row 0 has none."""
    random, plan = np.random.default_rng(seed), plan_of(release)
    contents = len(release.array("text_content_id.npy"))
    size, market = plan.config.candidates, random.integers(0, len(plan.markets), rows)
    candidates = np.full((rows, size), -1)
    for row in range(1, rows):
        may = may_be_shown(release, market[row])
        count = int(random.integers(0, min(size, len(may)) + 1))
        candidates[row, :count] = random.permutation(may)[:count]
    return {
        "candidates": candidates,
        "retrieval_score": random.normal(size=candidates.shape).astype(np.float32),
        "channel": random.integers(1, 4, candidates.shape).astype(np.int32),
        "probabilities": random.random((*candidates.shape, len(plan.tasks))).astype(np.float32),
        "market_index": market,
        "exposed": random.integers(-1, contents, (rows, 6)),
        "diversity": np.full(rows, diversity, np.float32),
        "seed": random.integers(-(2**63), 2**63, rows),
        "time": np.full(rows, synthetic.END),
        "explain": np.arange(rows) % 2 == 1,
        "preranking_score": random.normal(size=candidates.shape).astype(np.float32),
        "clock": np.zeros((rows, 2), np.int64),
        "funnel": (candidates >= 0).sum(axis=1)[:, None] * np.isin(FUNNEL, ("contents", "retrieved", "kept")),
    }


def worth(release, content, market, probabilities):
    """Value of a content as the configuration declares it, in Python numbers."""
    plan = plan_of(release)
    config, kind = plan.config, KINDS[release.array("kind_code.npy")[content]]
    price = float(release.array("price_usd.npy")[content])
    price = config.price_usd if np.isnan(price) else price
    total = 0.0
    for task, probability in zip(plan.tasks, probabilities.tolist()):
        scopes = (f"{plan.markets[market]}.{kind}", plan.markets[market], kind)
        declared = [config.weights_for[s][task] for s in scopes if task in config.weights_for.get(s, {})]
        weight = declared[0] if declared else config.weights.get(task, 0.0)
        total += probability * weight * (price if task in ("cart", "order") else 1)
    return total


@cache
def plan_of(release):
    return Plan.of(release)


@cache
def stage_of(release):
    return Reordering(release)


@cache
def tables_of(release):
    names = ("text_content_id", "seller_code", "category_code", "kind_code")
    return [release.array(f"{name}.npy").tolist() for name in names]


class Row:
    """One request with what the stage chose of it, as Python values."""

    def __init__(self, release, request, made, row):
        self.config = plan_of(release).config
        ids, self.seller, self.category, self.kind = tables_of(release)
        present = [int(c) for c in request["candidates"][row] if c >= 0]
        market = int(request["market_index"][row])
        self.value = {
            c: np.float32(worth(release, c, market, request["probabilities"][row, place]))
            for place, c in enumerate(present)
        }
        self.diversity = float(request["diversity"][row])
        self.exposed = [int(c) for c in request["exposed"][row] if c >= 0]
        self.wanted = release.array("popularity_world.npy")
        self.vectors = release.array("content_vectors.npy")
        self.ranked = sorted(present, key=lambda c: (-self.value[c], c))
        self.behind = self.stand_behind()
        kept = sorted(self.ranked, key=lambda c: (self.behind[c], self.often(c)))[: self.config.pool]
        self.pool = [c for c in self.ranked if c in kept]
        self.slate = [ids.index(c) for c in made["content_id"][row] if c]
        self.reasons = [Reason(int(r)) for r in made["slate_reason"][row][: len(self.slate)]]
        self.propensity = made["slate_propensity"][row]
        self.explored = [p for p, reason in enumerate(self.reasons) if reason is Reason.EXPLORATION]

    def greedy(self):
        """Each place that was not drawn: number, item, reason, items above, and what was left of the pool."""
        for place, (item, reason) in enumerate(zip(self.slate, self.reasons)):
            if place not in self.explored:
                above = self.slate[:place]
                yield place, item, reason, above, [c for c in self.pool if c not in above]

    def stand_behind(self):
        """By content, limits past whose share of the pool it is, or by which it is tired, strictest first."""
        config, size = self.config, self.config.pool
        capped = "frequency_cap" in config.rules
        tired = {c: [whether for _, whether in self.tired(c) if capped] for c in self.ranked}
        flags = {c: [] for c in self.ranked}
        asks = bool(config.reserved())
        for rule in config.rules:
            if rule == "frequency_cap":
                for c in self.ranked:
                    flags[c] = [*flags[c], *tired[c]]
            shares = []
            if rule in ("seller_cap", "category_cap"):
                group, cap = getattr(self, rule.removesuffix("_cap")), getattr(config, rule)
                shares = [({c: group[c] for c in self.ranked}, size * cap // config.slate, cap, config.slate)]
            elif rule == "slots":
                for slot in config.slots:
                    if slot.most is not None:
                        group = {c: 0 if KINDS[self.kind[c]] == slot.kind else -1 for c in self.ranked}
                        whole = slot.within in (0, config.slate)
                        share = size * slot.most // config.slate if whole else size
                        shares.append((group, share, slot.most, slot.within or config.slate))
                    if slot.least and asks:  # all kinds that slots ask for have their room at once
                        shares.append(None)
                        asks = False
            for one in shares:
                # What is tired counts after the rest, and so does what is past a stricter limit's share.
                order = sorted(self.ranked, key=lambda c: (tired[c], flags[c], self.often(c)))
                past = self.in_the_room_of_kinds(order) if one is None else set()
                if one is not None:
                    group, share, most, within = one
                    share = min(share, size - max(min(within, config.slate) - most, 0))
                    taken = {}
                    for c in order:
                        taken[group[c]] = taken.get(group[c], 0) + 1
                        if group[c] >= 0 and taken[group[c]] > share:
                            past.add(c)
                for c in self.ranked:
                    flags[c] = [*flags[c], c in past]
        return flags

    def in_the_room_of_kinds(self, order):
        """Of contents in an order, those without a place beside the best of the kinds asked for."""
        config, own = self.config, []
        for kind, places in config.reserved().items():
            part = config.pool * len(places) // config.slate
            own += [c for c in order if KINDS[self.kind[c]] == kind][:part]
        return set([c for c in order if c not in own][config.pool - len(own) :])

    def often(self, content):
        """How often a content was shown that was shown too often."""
        times = self.exposed.count(content)
        too_often = "frequency_cap" in self.config.rules and times >= self.config.content_frequency
        return times if too_often else 0

    def tired(self, content):
        """Whether the content and whether its seller was shown too often."""
        config, seller = self.config, self.seller[content]
        same = sum(self.seller[c] == seller for c in self.exposed)
        return [
            ("frequency_cap", self.exposed.count(content) >= config.content_frequency),
            ("seller_frequency", seller >= 0 and same >= config.seller_frequency),
        ]

    def broken(self, content, above, place):
        """Which limits a content would break at a place, strictest first: (rule, whether)."""
        config, found = self.config, []
        for rule in config.rules:
            if rule == "frequency_cap":
                found += self.tired(content)
            elif rule in ("seller_cap", "category_cap"):
                group, cap = getattr(self, rule.removesuffix("_cap")), getattr(config, rule)
                taken = sum(group[c] == group[content] for c in above)
                found.append((rule, group[content] >= 0 and taken >= cap))
            elif rule == "slots":
                reserved = config.reserved()
                for slot in config.slots:
                    taken = sum(KINDS[self.kind[c]] == slot.kind for c in above)
                    is_one = KINDS[self.kind[content]] == slot.kind
                    if slot.most is not None:
                        held = is_one and taken >= slot.most
                        found.append((rule, held and place < (slot.within or config.slate)))
                    if slot.least and (due := reserved.pop(slot.kind, None)):
                        late = place in due and taken <= due.index(place)
                        found.append((rule, not is_one and late))
        return found

    def flags(self, content, above, place):
        return [whether for _, whether in self.broken(content, above, place)]

    def open(self, left, above, place):
        """What is left of the pool and breaks the least limits; if shown too often, the least shown."""
        flags = {c: (self.flags(c, above, place), self.often(c)) for c in left}
        return [c for c in left if flags[c] == min(flags.values())]

    def gain(self, content, above):
        values = [float(self.value[c]) for c in self.pool]
        span = max(values) - min(values)
        worth = (float(self.value[content]) - min(values)) / span if span > 1e-9 else 0
        rule = next((rule for rule in self.config.rules if rule in DIVERSITIES), None)
        if rule is None or not self.diversity:
            return worth
        vectors = self.vectors[[*above, content]].astype(np.float64)
        likeness = vectors @ vectors.T
        if rule == "mmr":
            most = max(likeness[-1, :-1], default=0.0)
            return (1 - self.diversity) * worth - self.diversity * most
        kernel = (1 - JITTER) * likeness + JITTER * np.eye(len(vectors))
        with_it, without = np.linalg.slogdet(kernel)[1], np.linalg.slogdet(kernel[:-1, :-1])[1]
        return (1 - self.diversity) * worth + self.diversity * (with_it - without)


def timeless(made):
    """A reply with the times left out of its explanations."""
    told = made["explanation"].copy()
    for row, text in enumerate(told[:, 0]):
        if text:
            body = json.loads(text)
            told[row, 0] = json.dumps(body | {"stages": [{**stage, "ms": 0} for stage in body["stages"]]})
    return made | {"explanation": told}


def rows_of(worlds, world, seed, diversity=0.2, rows=4):
    release = worlds(world)
    request = ask(release, seed, rows, diversity)
    made = stage_of(release)(**request)
    return [Row(release, request, made, row) for row in range(rows)], plan_of(release).config, made


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=120)
def test_a_slate_holds_distinct_items_of_the_pool_and_is_as_long_as_it_can_be(worlds, world, seed, diversity):
    rows, config, made = rows_of(worlds, world, seed, diversity)
    for number, row in enumerate(rows):
        assert len(set(row.slate)) == len(row.slate) == min(config.slate, len(row.pool))
        assert set(row.slate) <= set(row.pool)
        assert (made["content_id"][number, len(row.slate) :] == "").all()
        for name in (name for name in made if name.startswith("slate_")):
            assert not made[name][number, len(row.slate) :].any(), name


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=120)
def test_a_limit_is_broken_only_where_all_that_is_left_breaks_it_or_a_stricter_one(
    worlds, world, seed, diversity
):
    for row in rows_of(worlds, world, seed, diversity)[0]:
        for place, item, _, above, left in row.greedy():
            assert item in row.open(left, above, place)


@given(SEEDS, NUMBERS, DIVERSITY)
@example(25, 39136, 0.0)
@settings(max_examples=120)
def test_reasons_are_true(worlds, world, seed, diversity):
    for row in rows_of(worlds, world, seed, diversity)[0]:
        for place, item, reason, above, _ in row.greedy():
            first = next(c for c in row.ranked if c not in above)
            own, its = row.broken(item, above, place), row.broken(first, above, place)
            differs = [rule for (rule, mine), (_, other) in zip(own, its) if mine != other]
            if item == first:
                assert reason is Reason.VALUE
            elif differs:
                assert reason is Reason[differs[0].upper()]
            elif row.often(first) > row.often(item):
                assert reason is Reason.FREQUENCY_CAP
            elif first in row.pool:
                assert reason is Reason.DIVERSITY
            else:
                assert reason in (Reason.SELLER_CAP, Reason.CATEGORY_CAP, Reason.SLOTS)


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=120)
def test_each_place_has_the_best_mix_of_value_and_difference_that_the_limits_allow(
    worlds, world, seed, diversity
):
    for row in rows_of(worlds, world, seed, diversity)[0]:
        for place, item, _, above, left in row.greedy():
            best = max(row.gain(content, above) for content in row.open(left, above, place))
            assert row.gain(item, above) == pytest.approx(best, abs=2e-3 if row.diversity else 1e-6)


@given(SEEDS, NUMBERS)
@settings(max_examples=60)
def test_without_diversity_each_place_has_the_highest_value_that_the_limits_allow(worlds, world, seed):
    for row in rows_of(worlds, world, seed, 0.0)[0]:
        for place, item, reason, above, left in row.greedy():
            assert item == row.open(left, above, place)[0]
            assert reason is not Reason.DIVERSITY


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=120)
def test_what_is_drawn_is_uncertain_and_breaks_no_limit(worlds, world, seed, diversity):
    for row in rows_of(worlds, world, seed, diversity, rows=6)[0]:
        places = list(range(len(row.slate)))
        assert row.explored in ([], places[len(places) - row.config.explored :])
        for place in row.explored:
            item = row.slate[place]
            assert row.wanted[item] < row.config.explore_outcomes
            assert not any(row.flags(item, row.slate[:place], place))
            assert 0 < row.propensity[place] <= 1
        for place, *_ in row.greedy():
            assert row.propensity[place] == 1


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_propensities_match_the_frequencies_of_many_seeds(worlds, world, seed, diversity):
    release, draws = worlds(world), 4000
    one = {name: array[-1:] for name, array in ask(release, seed, 2, diversity).items()}
    one["explain"] = np.array([False])  # thousands of explanations take longer than all draws
    stage = stage_of(release)
    assume((stage(**one)["slate_reason"] == Reason.EXPLORATION).any())
    many = {name: np.repeat(array, draws, axis=0) for name, array in one.items()}
    made = stage(**many | {"seed": np.random.default_rng(seed).integers(2**63, size=draws)})
    for place in range(plan_of(release).config.slate):
        ids, first, counts = np.unique(made["content_id"][:, place], return_index=True, return_counts=True)
        said = made["slate_propensity"][:, place]
        for content, at, count in zip(ids, first, counts):
            expected = said[at] if content else 0
            np.testing.assert_array_equal(said[made["content_id"][:, place] == content], expected)
            error = np.sqrt(expected * (1 - expected) / draws)
            assert not content or abs(count / draws - expected) <= 5 * error + 1e-3
        if made["content_id"][0, place]:
            # What was never drawn is rare.
            assert said[first].sum() == pytest.approx(1, abs=0.05)


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=120)
def test_each_candidate_is_kept_or_dropped_for_one_true_reason(worlds, world, seed, diversity):
    rows, _, made = rows_of(worlds, world, seed, diversity, rows=5)
    ids = tables_of(worlds(world))[0]
    for number, row in enumerate(rows):
        text = made["explanation"][number, 0]
        assert bool(text) == (number % 2 == 1), "it was told to those who asked alone"
        if not text:
            continue
        told = Explanation.of(text)
        last = told.stages[-1]
        assert [stage.stage for stage in told.stages][-2:] == ["ranking", "reordering"]
        assert last.took == len(row.value) == last.kept + sum(last.dropped.values())
        assert [ids.index(item.content) for item in told.items] == row.slate
        assert {ids.index(other.content) for other in told.others} == set(row.pool) - set(row.slate)
        greedy = list(row.greedy())
        for place, item, reason, above, _ in greedy:
            rules = told.items[place].rules
            better = [c for c in row.ranked[: row.ranked.index(item)] if c not in above]
            assert told.items[place].value_rank == row.ranked.index(item) + 1
            assert bool(rules) == bool(better)
            assert rules[0] == reason.text if reason not in (Reason.VALUE, Reason.DIVERSITY) else True
        for other in told.others if greedy else ():
            place, item, _, above, _ = greedy[-1]
            content = ids.index(other.content)
            own, its = row.broken(item, above, place), row.broken(content, above, place)
            differs = [rule for (rule, mine), (_, theirs) in zip(own, its) if mine != theirs]
            if other.reason == Reason.EXPLORATION.lost:
                assert row.explored
            elif differs:
                assert other.reason == Reason[differs[0].upper()].lost
            elif row.often(content) > row.often(item):
                assert other.reason == Reason.FREQUENCY_CAP.lost
            else:
                assert (other.reason == LOW) == (row.pool.index(content) > row.pool.index(item))


@given(SEEDS, NUMBERS)
@settings(max_examples=40)
def test_the_same_seed_gives_the_same_slate(worlds, world, seed):
    release = worlds(world)
    request = ask(release, seed, 4)
    before, after = timeless(stage_of(release)(**request)), timeless(Reordering(release)(**request))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], name)


@given(SEEDS, NUMBERS, DIVERSITY, st.booleans())
@settings(max_examples=120)
def test_the_order_of_candidates_does_not_change_the_slate(worlds, world, seed, diversity, equal):
    release = worlds(world)
    stage, request = stage_of(release), ask(release, seed, 3, diversity)
    if equal:  # of values that tie too
        request["probabilities"] = np.round(request["probabilities"])
    random = np.random.default_rng(seed)
    shuffled = {name: array.copy() for name, array in request.items()}
    for row in range(3):
        order = random.permutation(request["candidates"].shape[1])
        for name in ("candidates", "retrieval_score", "channel", "probabilities", "preranking_score"):
            shuffled[name][row] = request[name][row][order]
    before, after = timeless(stage(**request)), timeless(stage(**shuffled))
    for name in set(before) - {"slate_candidate_rank"}:
        np.testing.assert_array_equal(before[name], after[name], name)


@given(SEEDS, NUMBERS, DIVERSITY)
@settings(max_examples=100)
def test_a_batch_has_the_slates_of_its_requests_one_by_one(worlds, world, seed, diversity):
    release = worlds(world)
    stage, request = stage_of(release), ask(release, seed, 5, diversity)
    request["diversity"][2] = 0.4
    batch = timeless(stage(**request))
    alone = [timeless(stage(**{name: a[[row]] for name, a in request.items()})) for row in range(5)]
    for name, array in batch.items():
        np.testing.assert_array_equal(array, np.concatenate([one[name] for one in alone]), name)


def test_an_item_carries_what_each_stage_said_of_it(worlds):
    release = worlds(4)
    request = ask(release, 2, 4)
    made = Reordering(release)(**request)
    ids = release.array("text_content_id.npy").tolist()
    checked = 0
    for row, place in np.argwhere(made["content_id"] != ""):
        rank = made["slate_candidate_rank"][row, place] - 1
        content = request["candidates"][row, rank]
        assert ids.index(made["content_id"][row, place]) == content
        for name in ("retrieval_score", "channel", "probabilities"):
            np.testing.assert_array_equal(made[f"slate_{name}"][row, place], request[name][row, rank])
        value = worth(release, content, request["market_index"][row], request["probabilities"][row, rank])
        assert made["slate_value"][row, place] == pytest.approx(value, rel=1e-5, abs=1e-6)
        checked += 1
    assert checked


@pytest.mark.parametrize("diversity", [-0.01, 1.01, -5.0])
def test_a_diversity_outside_0_to_1_is_refused_with_its_row(worlds, diversity):
    request = ask(worlds(4), 2, 3)
    request["diversity"][1] = diversity
    with pytest.raises(RequestError, match="at row 1; send 0 to 1") as caught:
        Reordering(worlds(4))(**request)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("cap", [40_000, 100_000])
def test_a_cap_above_the_slate_holds_nothing_however_large_it_is(worlds, tmp_path, cap):
    release, made = worlds(4), []
    for seller_cap in (plan_of(release).config.slate, cap):
        knobs = {"rules": ("seller_cap", "exploration"), "seller_cap": seller_cap, "explore": 0.5}
        plan = plan_of(release)
        config = dataclasses.replace(plan.config, **knobs, explore_outcomes=99)
        with ReleaseWriter(tmp_path / str(seller_cap), name="caps") as other:
            other.copy(release)
            other.json(FILE, dataclasses.replace(plan, config=config).to_json())
        made.append(timeless(Reordering(Release.open(tmp_path / str(seller_cap)))(**ask(release, 2, 6))))
    assert (made[0]["slate_reason"] == Reason.EXPLORATION).any()
    for name, array in made[0].items():
        np.testing.assert_array_equal(array, made[1][name], name)


def test_every_reason_has_words_of_its_own():
    assert len({reason.text for reason in Reason}) == len({reason.lost for reason in Reason}) == len(Reason)
    assert {name.upper() for name in LIMITS} < {reason.name for reason in Reason}


@given(SEEDS, NUMBERS)
@settings(max_examples=30)
def test_what_may_not_be_shown_is_dropped_however_it_became_a_candidate(worlds, world, seed):
    release = worlds(world)
    contents = release.array("text_content_id.npy")
    size = min(plan_of(release).config.candidates, len(contents))
    request = ask(release, seed, 4)
    request["candidates"][:] = -1
    request["candidates"][:, :size] = np.random.default_rng(seed).permutation(len(contents))[:size]
    made = Reordering(release)(**request)
    for row, market in enumerate(request["market_index"]):
        may = set(may_be_shown(release, market)) & set(request["candidates"][row])
        shown = [content for content in made["content_id"][row] if content]
        assert set(shown) <= {contents[place] for place in may}
        assert len(shown) == min(len(may), plan_of(release).config.slate)


@given(SEEDS, NUMBERS)
@settings(max_examples=30)
def test_a_candidate_of_an_excluded_seller_is_dropped_for_its_own_reason(worlds, world, seed):
    release = worlds(world)
    request, seller = ask(release, seed, 4), release.array("seller_code.npy")
    excluded = np.random.default_rng(seed).integers(-1, 6, (4, 2))
    made = stage_of(release)(**request, excluded_sellers=excluded)
    theirs = [
        sum(c >= 0 and seller[c] >= 0 and seller[c] in excluded[row] for c in contents)
        for row, contents in enumerate(request["candidates"])
    ]
    left = request["candidates"].copy()
    left[((seller[left][..., None] == excluded[:, None]) & (seller[left] >= 0)[..., None]).any(axis=2)] = -1
    without = stage_of(release)(**request | {"candidates": left})
    np.testing.assert_array_equal(made["content_id"], without["content_id"])
    for row in (1, 3):
        last = Explanation.of(made["explanation"][row, 0]).stages[-1]
        assert last.dropped.get("of an excluded seller", 0) == theirs[row]
        assert last.took == last.kept + sum(last.dropped.values())


def remade(release, folder, contents=None, **knobs):
    """The release with other knobs, and with arrays of its contents from `contents`."""
    plan = plan_of(release)
    with ReleaseWriter(folder, name=folder.name) as other:
        other.copy(release)
        other.json(
            FILE, dataclasses.replace(plan, config=dataclasses.replace(plan.config, **knobs)).to_json()
        )
        for name, array in (contents or {}).items():
            other.array(f"{name}.npy", array)
    return Release.open(folder)


def hundred(release, folder, **knobs):
    """A hundred lasting contents of every market, each of its own seller, without a category."""
    count, plan = 100, plan_of(release)
    here = np.ones((len(plan.markets), count))
    arrays = {
        "available": here.astype(bool),
        "popularity": here.astype(np.float32),
        "popularity_world": np.ones(count, np.float32),
        "created_at": np.full(count, synthetic.START),
        "ended_at": np.full(count, synthetic.NEVER),
        "stock": np.full(count, -1),
        "seller_code": np.arange(count, dtype=np.int32),
        "category_code": np.full(count, -1, np.int32),
        "kind_code": np.zeros(count, np.int8),
        "price_usd": np.full(count, 1, np.float32),
        "text_content_id": np.array([f"content-{row}" for row in range(count)]),
        "text_seller_id": np.full(count, "seller"),
        "text_kind": np.full(count, "video"),
        "text_category": np.full(count, "toys"),
        "text_content_language": np.full(count, "en"),
        "content_vectors": np.random.default_rng(0).normal(size=(count, synthetic.DIM)).astype(np.float32),
    }
    arrays |= {name: knobs.pop(name) for name in list(knobs) if name in arrays}
    sizes = {"retrieved": 100, "candidates": 100, "pool": 60, "slate": 10, "seller_cap": 2, "category_cap": 6}
    rules = {"rules": (*LIMITS, "dpp", "exploration"), "slots": (), "explore": 0.0, "explore_outcomes": 99}
    frequency = {"content_frequency": 2, "seller_frequency": 3}
    return remade(release, folder, arrays, **sizes | rules | frequency | {"weights_for": {}} | knobs)


def all_hundred(release, shown=(), seed=0, market=1):
    """A request whose candidates are all contents, the sooner in the table the better."""
    plan, order = plan_of(release), np.random.default_rng(seed).permutation(100)
    probabilities = np.zeros((1, 100, len(plan.tasks)), np.float32)
    probabilities[0, :, plan.tasks.index("click")] = 1 - order / 200
    return {
        "candidates": order[None],
        "retrieval_score": np.zeros((1, 100), np.float32),
        "channel": np.ones((1, 100), np.int32),
        "probabilities": probabilities,
        "market_index": np.array([market]),
        "exposed": np.array([list(shown)], np.int64).reshape(1, -1),
        "diversity": np.full(1, 0.2, np.float32),
        "seed": np.array([seed]),
        "time": np.full(1, synthetic.END),
        "explain": np.ones(1, bool),
        "preranking_score": np.zeros((1, 100), np.float32),
        "clock": np.zeros((1, 2), np.int64),
        "funnel": 100 * np.isin(FUNNEL, ("contents", "retrieved", "kept"))[None].astype(np.int64),
    }


def slate_of(made):
    return [int(content.removeprefix("content-")) for content in made["content_id"][0] if content]


@pytest.mark.parametrize("sellers", [100, 20, 4, 1])
@pytest.mark.parametrize("explore", [0.0, 0.1])
def test_page_after_page_no_content_is_shown_beyond_its_cap_while_another_keeps_it(
    worlds, tmp_path, sellers, explore
):
    seller = np.arange(100, dtype=np.int32) % sellers
    release = hundred(worlds(4), tmp_path / "pages", seller_code=seller, explore=explore)
    stage, shown = Reordering(release), []
    for page in range(25):
        slate = slate_of(stage(**all_hundred(release, shown, seed=page)))
        rested = [content for content in range(100) if shown.count(content) < 2]
        beyond = [content for content in slate if content not in rested]
        assert len(slate) == 10
        assert len(beyond) == max(0, 10 - len(rested)), f"page {page}: {beyond} beside {len(rested)} rested"
        shown += slate


@pytest.mark.parametrize("sellers", [100, 20, 4, 1])
@pytest.mark.parametrize("pool", [60, 100])
def test_where_all_were_shown_too_often_all_take_turns(worlds, tmp_path, sellers, pool):
    seller = np.arange(100, dtype=np.int32) % sellers
    release = hundred(worlds(4), tmp_path / "turns", seller_code=seller, pool=pool)
    stage, shown = Reordering(release), [content for content in range(100) for _ in range(3)]
    for page in range(30):
        made = stage(**all_hundred(release, shown, seed=page))
        times = [shown.count(content) for content in slate_of(made)]
        assert len(times) == 10
        shown += slate_of(made)
    assert {shown.count(content) for content in range(100)} <= {5, 6, 7}


def test_who_was_shown_all_too_often_gets_the_least_shown_beside_others_who_were_not(worlds, tmp_path):
    release = hundred(worlds(4), tmp_path / "beside", seller_frequency=999)
    shown = [content for content in range(100) for _ in range(3 if content < 75 else 2)]
    worn, rested = all_hundred(release, shown), all_hundred(release, [-1] * len(shown))
    both = {name: np.concatenate([array, rested[name]]) for name, array in worn.items()}
    alone = slate_of(Reordering(release)(**worn))
    assert min(alone) >= 75
    assert slate_of(Reordering(release)(**both)) == alone


def test_where_a_stricter_cap_leaves_only_what_was_shown_too_often_the_least_shown_goes_first(
    worlds, tmp_path
):
    """Though a slate could be filled with what was not: all of it is of one seller."""
    seller = np.maximum(np.arange(100, dtype=np.int32), 49)
    rules, own = ("seller_cap", "frequency_cap", "exploration"), {"seller_code": seller}
    release = hundred(worlds(4), tmp_path / "stricter", rules=rules, seller_frequency=999, **own)
    shown = [content for content in range(50, 100) for _ in range(3 if content < 75 else 2)]
    slate = slate_of(Reordering(release)(**all_hundred(release, shown)))
    assert slate == [0, 1, *range(75, 83)]


@pytest.mark.parametrize("order", [LIMITS, LIMITS[::-1]], ids=["usual", "reversed"])
@pytest.mark.parametrize(
    ("group", "cap"),
    [
        ("seller_code", {}),
        ("category_code", {}),
        ("kind_code", {"slots": (Slot("live", 3),)}),
        ("kind_code", {"slots": (Slot("live", 1, 3),)}),
    ],
    ids=["seller", "category", "kind", "kind within"],
)
def test_a_cap_is_kept_where_the_candidates_can_though_the_best_of_them_are_alike(
    worlds, tmp_path, group, cap, order
):
    code = np.where(np.arange(100) < 70, 1, 2 + np.arange(100)).astype(np.int32)
    if group == "kind_code":
        code = np.where(code == 1, KINDS.index("live"), KINDS.index("video")).astype(np.int8)
    rules = (*order, "dpp", "exploration")
    release = hundred(worlds(4), tmp_path / "alike", rules=rules, **{group: code}, **cap)
    slate = slate_of(Reordering(release)(**all_hundred(release)))
    alike = [content < 70 for content in slate]
    most = {"seller_code": 2, "category_code": 6, "kind_code": 3}[group]
    if any(slot.within for slot in cap.get("slots", ())):
        alike, most = alike[:3], 1
    assert len(slate) == 10
    assert sum(alike) <= most


@pytest.mark.parametrize("cap", [160_000_000_000_000_000, 2**63 - 1, 10**30])
@pytest.mark.parametrize("knob", ["seller_cap", "category_cap", "slots"])
def test_a_cap_that_is_meant_as_none_leaves_the_pool_as_it_is(worlds, tmp_path, knob, cap):
    alike = {"seller_code": np.where(np.arange(100) < 70, 1, -1).astype(np.int32)}
    alike |= {"category_code": alike["seller_code"], "kind_code": kinds(live=np.s_[:70])}
    made = []
    for most in (10, cap):
        value = (Slot("live", most),) if knob == "slots" else most
        free = {"seller_cap": 10, "category_cap": 10, knob: value}
        release = hundred(worlds(4), tmp_path / str(most), **alike, **free)
        made.append(timeless(Reordering(release)(**all_hundred(release))))
    for name, array in made[0].items():
        np.testing.assert_array_equal(array, made[1][name], name)


def kinds(**rows):
    """Kinds of a hundred contents: those of rows, the others videos."""
    code = np.full(100, KINDS.index("video"), np.int8)
    for kind, places in rows.items():
        code[places] = KINDS.index(kind)
    return code


@pytest.mark.parametrize("order", [LIMITS, LIMITS[::-1]], ids=["usual", "reversed"])
@pytest.mark.parametrize("explore", [0.0, 0.3])
@pytest.mark.parametrize(
    ("slots", "places"),
    [
        ((Slot("live", least=2, within=5),), {"live": [3, 4]}),
        (
            (Slot("live", least=1, within=3), Slot("product", least=1, within=3)),
            {"live": [1], "product": [2]},
        ),
        (
            (Slot("product", least=2, within=4), Slot("live", least=1, within=2)),
            {"product": [2, 3], "live": [1]},
        ),
        ((Slot("live", least=1, within=2), Slot("live", least=3, within=6)), {"live": [1, 4, 5]}),
        ((Slot("live", least=2, most=2),), {"live": [-2, -1]}),
        ((Slot("live", least=2, within=10), Slot("product", least=1)), {"live": [-3, -2], "product": [-1]}),
    ],
)
def test_slots_that_ask_for_a_kind_get_the_best_of_it_where_it_has_not_come_before(
    worlds, tmp_path, slots, places, order, explore
):
    code = kinds(live=np.s_[70:80], product=np.s_[90:])
    rules = (*order, "dpp", "exploration")
    release = hundred(
        worlds(4), tmp_path / "least", rules=rules, slots=slots, kind_code=code, explore=explore
    )
    stage, one = Reordering(release), all_hundred(release)
    one["diversity"][:] = 0  # by value alone
    made = stage(**one)
    slate, greedy = slate_of(made), 10 - round(10 * explore)
    expected = list(range(greedy))
    for kind, own in places.items():
        for content, place in zip(
            np.flatnonzero(code == KINDS.index(kind)).tolist(), sorted(p % greedy for p in own)
        ):
            expected[place] = content
    taken = iter(range(greedy))
    expected = [c if code[c] != 0 else next(taken) for c in expected]
    assert slate[:greedy] == expected
    assert len(set(slate)) == 10
    assert (made["slate_reason"][0, greedy:] == Reason.EXPLORATION).all()
    assert not Explanation.of(made["explanation"][0, 0]).given_up


def test_of_a_kind_that_comes_by_its_own_value_slots_ask_for_no_more(worlds, tmp_path):
    code, knobs = kinds(live=np.s_[:100:4]), {"slots": (Slot("live", least=2, within=5),)}
    with_it = hundred(worlds(4), tmp_path / "with", kind_code=code, **knobs)
    without = hundred(worlds(4), tmp_path / "without", kind_code=code)
    request = all_hundred(with_it)
    request["diversity"][:] = 0
    assert slate_of(Reordering(with_it)(**request)) == slate_of(Reordering(without)(**request))


@pytest.mark.parametrize("explore", [0.0, 0.1, 0.3])
def test_a_slot_for_a_kind_that_there_is_not_is_given_up_and_says_so(worlds, tmp_path, explore):
    slots = (Slot("live", least=2, within=5), Slot("product", least=1))
    code = kinds(product=np.s_[60:61])
    release = hundred(worlds(4), tmp_path / "none", kind_code=code, slots=slots, explore=explore)
    alone = hundred(worlds(4), tmp_path / "alone", kind_code=code, slots=slots[1:], explore=explore)
    request = all_hundred(release)
    made, other = Reordering(release)(**request), Reordering(alone)(**request)
    assert len(slate_of(made)) == 10
    assert slate_of(made) == slate_of(other)
    np.testing.assert_array_equal(made["slate_propensity"], other["slate_propensity"])
    (told,) = Explanation.of(made["explanation"][0, 0]).given_up
    assert (told.slot, told.reason) == (
        "at least 2 live among the first 5",
        "no more of it among the candidates",
    )


def test_a_slot_yields_to_a_rule_that_is_declared_before_it(worlds, tmp_path):
    code = kinds(live=np.s_[80:90])
    seller = np.where(code == KINDS.index("live"), 7, 100 + np.arange(100)).astype(np.int32)
    slots = (Slot("live", least=3, within=5),)
    release = hundred(
        worlds(4), tmp_path / "yields", kind_code=code, seller_code=seller, seller_cap=1, slots=slots
    )
    shown = [content for content in range(80, 88) for _ in range(2)]
    for tired, count, why in (((), 1, "seller at its cap"), (shown, 0, "shown too often")):
        made = Reordering(release)(**all_hundred(release, tired))
        slate = slate_of(made)
        assert len(slate) == 10
        assert sum(80 <= content < 90 for content in slate) == count
        (told,) = Explanation.of(made["explanation"][0, 0]).given_up
        assert told.reason == why


def test_a_slot_given_up_is_told_why_though_its_kind_comes_further_down(worlds, tmp_path):
    release = hundred(
        worlds(4), tmp_path / "down", kind_code=kinds(live=[5]), slots=(Slot("live", least=1, within=3),)
    )
    shown = [content for content in range(5, 100) for _ in range(2)]
    made = Reordering(release)(**all_hundred(release, shown) | {"diversity": np.zeros(1, np.float32)})
    assert slate_of(made) == [*range(10)]
    (told,) = Explanation.of(made["explanation"][0, 0]).given_up
    assert told.reason == "shown too often"


@pytest.mark.parametrize("diversity", [0.0, 1.0])
def test_contents_of_equal_value_stand_in_the_order_of_the_table(worlds, tmp_path, diversity):
    release = hundred(
        worlds(4), tmp_path / "equal", content_vectors=np.ones((100, synthetic.DIM), np.float32)
    )
    request = all_hundred(release) | {"diversity": np.full(1, diversity, np.float32)}
    request["probabilities"][:] = 0
    assert slate_of(Reordering(release)(**request)) == [*range(10)]


def test_a_seller_and_a_category_beyond_their_share_leave_the_pool_what_keeps_both_caps(worlds, tmp_path):
    seller = np.where(np.arange(100) < 40, 0, np.arange(100)).astype(np.int32)
    category = np.where(np.arange(100) < 85, 0, 1 + np.arange(100) % 3).astype(np.int32)
    release = hundred(worlds(4), tmp_path / "both", seller_code=seller, category_code=category)
    slate = slate_of(Reordering(release)(**all_hundred(release)))
    assert sum(content < 40 for content in slate) <= 2
    assert sum(content < 85 for content in slate) <= 6


def pool_of(made):
    """Contents of the pool of one explained request, ascending."""
    told = Explanation.of(made["explanation"][0, 0])
    return sorted(int(one.content.removeprefix("content-")) for one in (*told.items, *told.others))


def test_what_is_past_a_stricter_share_takes_no_room_of_the_next_one(worlds, tmp_path):
    seller = np.where(np.arange(100) < 20, 0, np.arange(100)).astype(np.int32)
    release = hundred(
        worlds(4),
        tmp_path / "shares",
        seller_code=seller,
        category_code=np.where(np.arange(100) < 60, 0, -1).astype(np.int32),
        kind_code=kinds(live=np.s_[60:]),
        slots=(Slot("live", 1),),
    )
    # 12 of the seller, 36 of the category, 6 rooms; then rooms, since slots are declared last.
    assert pool_of(Reordering(release)(**all_hundred(release))) == [
        *range(12),
        *range(20, 44),
        *range(60, 84),
    ]


def test_what_is_tired_takes_no_room_of_its_seller_s_share(worlds, tmp_path):
    seller = np.where(np.arange(100) < 30, 0, np.arange(100)).astype(np.int32)
    release = hundred(worlds(4), tmp_path / "tired", seller_code=seller, seller_frequency=99)
    shown = [content for content in range(20) for _ in range(2)]
    assert pool_of(Reordering(release)(**all_hundred(release, shown))) == [*range(20, 80)]


def test_contents_without_a_seller_have_no_share_of_the_pool(worlds, tmp_path):
    seller = np.where(np.arange(100) < 80, -1, 1).astype(np.int32)
    release = hundred(worlds(4), tmp_path / "without", seller_code=seller)
    assert pool_of(Reordering(release)(**all_hundred(release))) == [*range(60)]


def test_a_kind_that_slots_ask_for_has_as_large_a_part_of_the_pool_as_it_has_places(worlds, tmp_path):
    slots, code = (Slot("live", least=3),), kinds(live=np.s_[70:])
    release = hundred(worlds(4), tmp_path / "part", slots=slots, kind_code=code)
    assert pool_of(Reordering(release)(**all_hundred(release))) == [*range(42), *range(70, 88)]


def test_slots_that_ask_for_one_kind_make_one_limit_beside_those_for_the_most(worlds, tmp_path):
    most = [Slot("live", place, place) for place in range(1, 11)]
    least = [Slot("live", least=1, within=place) for place in range(7, 10)]
    stage = Reordering(hundred(worlds(4), tmp_path / "limits", slots=(*most, *least)))
    assert stage.why.count(Reason.SLOTS) == 11
    assert stage.bits.tolist() == [1 << bit for bit in range(13)]


def test_what_the_pool_did_not_take_is_told_its_own_reason(worlds, tmp_path):
    seller = np.where(np.arange(100) < 30, 0, np.arange(100)).astype(np.int32)
    seller[96:] = 96
    release = hundred(worlds(4), tmp_path / "told", seller_code=seller)
    shown = [content for content in range(90, 94) for _ in range(2)] + [96, 96, 97]
    told = Explanation.of(Reordering(release)(**all_hundred(release, shown))["explanation"][0, 0])
    dropped = told.stages[-1].dropped
    assert dropped[CROWDED] == 30 - 12
    assert dropped["shown too often"] == 5
    assert dropped["seller shown too often"] == 3
    assert sum(dropped.values()) == 90


def test_where_nothing_but_its_share_of_the_pool_kept_a_content_out_that_is_the_reason(worlds, tmp_path):
    """The pool holds eight rooms for a slot that yields to another, and nothing holds the ninth back."""
    code, slots = kinds(live=np.s_[:50], product=np.s_[50:90]), (Slot("product", 0, 5), Slot("live", 1, 3))
    release = hundred(worlds(4), tmp_path / "share", pool=10, kind_code=code, slots=slots)
    request = all_hundred(release)
    request["diversity"][:] = 0
    made = Reordering(release)(**request)
    assert slate_of(made) == [*range(8), 50, 51]
    assert made["slate_reason"][0].tolist() == [Reason.VALUE] * 8 + [Reason.SLOTS] * 2


def test_a_slot_of_no_places_is_no_reason_for_another_kind(worlds, tmp_path):
    seller = np.where(np.arange(100) < 50, 0, np.arange(100)).astype(np.int32)
    rules = (*LIMITS[::-1], "exploration")
    release = hundred(
        worlds(4), tmp_path / "none", pool=10, seller_code=seller, rules=rules, slots=(Slot("live", 0),)
    )
    made = Reordering(release)(**all_hundred(release))
    assert slate_of(made) == [0, 1, *range(50, 58)]
    assert made["slate_reason"][0].tolist() == [Reason.VALUE] * 2 + [Reason.SELLER_CAP] * 8


def test_contents_of_higher_value_that_variety_kept_from_a_place_were_too_like_those_above(worlds, tmp_path):
    vectors = np.eye(synthetic.DIM, dtype=np.float32)[(np.arange(100) == 2).astype(int)]
    release = hundred(worlds(4), tmp_path / "like", content_vectors=vectors)
    made = Reordering(release)(**all_hundred(release) | {"diversity": np.full(1, 0.5, np.float32)})
    told = Explanation.of(made["explanation"][0, 0]).items
    assert slate_of(made)[:3] == [0, 2, 1]
    assert made["slate_reason"][0, 1] == Reason.DIVERSITY
    assert [item.rules for item in told[:3]] == [(), (Reason.DIVERSITY.lost,), ()]


def test_one_exposure_alone_counts(worlds, tmp_path):
    release = hundred(worlds(4), tmp_path / "one", content_frequency=1)
    assert 0 in slate_of(Reordering(release)(**all_hundred(release)))
    assert 0 not in slate_of(Reordering(release)(**all_hundred(release, [0])))


def test_an_item_tells_each_rule_that_kept_contents_of_higher_value_from_its_place(worlds, tmp_path):
    seller = np.arange(100, dtype=np.int32)
    seller[2] = seller[1]
    release = hundred(worlds(4), tmp_path / "each", seller_code=seller, seller_cap=1)
    request = all_hundred(release, [0, 0])
    request["diversity"][:] = 0
    made = Reordering(release)(**request)
    told = Explanation.of(made["explanation"][0, 0]).items
    assert slate_of(made)[:2] == [1, 3]
    assert [item.rules for item in told[:2]] == [
        (Reason.FREQUENCY_CAP.text,),
        (Reason.FREQUENCY_CAP.text, Reason.SELLER_CAP.text),
    ]


def test_where_all_were_shown_too_often_the_pool_left_out_those_shown_more_for_that(worlds, tmp_path):
    release = hundred(worlds(4), tmp_path / "more", seller_frequency=99)
    shown = [content for content in range(100) for _ in range(3 if content < 40 else 2)]
    told = Explanation.of(Reordering(release)(**all_hundred(release, shown))["explanation"][0, 0])
    assert told.stages[-1].dropped["shown too often"] == 40


def test_where_all_were_shown_too_often_those_of_the_pool_shown_more_are_left_out_for_that(worlds, tmp_path):
    release = hundred(worlds(4), tmp_path / "within", seller_frequency=99, pool=100)
    shown = [content for content in range(100) for _ in range(3 if content < 20 else 2)]
    made = Reordering(release)(**all_hundred(release, shown))
    told = Explanation.of(made["explanation"][0, 0])
    assert set(slate_of(made)) <= set(range(20, 100))
    reasons = {other.content: other.reason for other in told.others}
    assert {reasons[f"content-{content}"] for content in range(20)} == {Reason.FREQUENCY_CAP.lost}
    assert all(item.rules[0] == Reason.FREQUENCY_CAP.text for item in told.items)


def test_an_item_below_contents_that_the_pool_left_out_does_not_have_the_highest_value(worlds, tmp_path):
    release = hundred(worlds(4), tmp_path / "left")
    shown = [content for content in range(50) for _ in range(2)]
    made = Reordering(release)(**all_hundred(release, shown))
    told = Explanation.of(made["explanation"][0, 0])
    assert min(slate_of(made)) >= 50
    assert set(made["slate_reason"][0]) == {Reason.FREQUENCY_CAP}
    assert {item.value_rank for item in told.items} == {content + 1 for content in slate_of(made)}
    assert all(item.rules[0] == Reason.FREQUENCY_CAP.text for item in told.items)
    # 10 tired contents fill the pool up; the others stay outside it for the same reason.
    assert told.stages[-1].dropped["shown too often"] >= 10


@pytest.mark.parametrize("explore", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("capped", ["seller", "category", "kind"])
def test_exploration_fills_its_places_though_they_are_more_than_a_cap(worlds, tmp_path, explore, capped):
    groups = {
        "seller": {"seller_code": (np.arange(100) // 10).astype(np.int32)},
        "category": {"category_code": (np.arange(100) % 8).astype(np.int32), "category_cap": 2},
        "kind": {
            "kind_code": (np.arange(100) % 3).astype(np.int8),
            "slots": (Slot("live", 2), Slot("video", 4)),
        },
    }[capped]
    release = hundred(worlds(4), tmp_path / "more", explore=explore, **groups)
    stage, one, draws = Reordering(release), all_hundred(release), 4000
    one["explain"][:] = False
    many = {name: np.repeat(array, draws, axis=0) for name, array in one.items()}
    made = stage(**many | {"seed": np.random.default_rng(1).integers(2**63, size=draws)})
    assert ((made["slate_reason"] == Reason.EXPLORATION).sum(axis=1) == round(10 * explore)).all()
    rows = np.char.replace(made["content_id"].astype(str), "content-", "").astype(int)
    code = next(array for name, array in groups.items() if name.endswith("code"))
    most = {"seller": [2] * 10, "category": [2] * 8, "kind": [4, 2, 10]}[capped]
    for group, cap in enumerate(most):
        assert ((code[rows] == group).sum(axis=1) <= cap).all()
    for place in range(10):
        said = made["slate_propensity"][:, place]
        for content in np.unique(rows[:, place]):
            here = rows[:, place] == content
            assert len(set(said[here].tolist())) == 1, "it does not hang on what another place got"
            expected = said[here][0]
            error = np.sqrt(expected * (1 - expected) / draws)
            assert abs(here.mean() - expected) <= 5 * error + 1e-3


def test_what_is_drawn_keeps_a_cap_that_ends_among_the_places_to_explore(worlds, tmp_path):
    code, slots = kinds(live=np.s_[::2]), (Slot("live", 1, 8),)
    release = hundred(worlds(4), tmp_path / "ends", kind_code=code, slots=slots, explore=0.3)
    one = all_hundred(release)
    one["explain"][:] = False
    many = {name: np.repeat(array, 50, axis=0) for name, array in one.items()} | {"seed": np.arange(50)}
    made = Reordering(release)(**many)
    rows = np.char.replace(made["content_id"].astype(str), "content-", "").astype(int)
    assert (made["slate_reason"][:, 7:] == Reason.EXPLORATION).all()
    assert ((code[rows[:, :8]] == KINDS.index("live")).sum(axis=1) == 1).all()


def test_a_content_that_exploration_displaced_is_told_so(worlds, tmp_path):
    greedy = hundred(worlds(4), tmp_path / "greedy")
    exploring = hundred(worlds(4), tmp_path / "exploring", explore=0.3)
    request = all_hundred(greedy)
    without, made = Reordering(greedy)(**request), Reordering(exploring)(**request)
    displaced = set(slate_of(without)) - set(slate_of(made))
    told = Explanation.of(made["explanation"][0, 0])
    gave_way = {other.content for other in told.others if other.reason == "gave way to exploration"}
    assert displaced
    assert gave_way == {f"content-{content}" for content in displaced}


def test_outcomes_that_a_market_borrowed_from_its_neighbours_are_counted_once(worlds, tmp_path):
    # Each was wanted three times in one market; the two without a log borrow that.
    borrowed = {
        "popularity": np.full((3, 100), 3, np.float32),
        "popularity_world": np.full(100, 3, np.float32),
    }
    release = hundred(worlds(4), tmp_path / "borrowed", explore=0.2, explore_outcomes=5, **borrowed)
    made = Reordering(release)(**all_hundred(release))
    assert (made["slate_reason"][0] == Reason.EXPLORATION).sum() == 2
