"""A plan survives its file, and knobs that contradict one another are refused by name."""

import json
import re
from dataclasses import asdict, replace
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.plan import FILE, QUOTAS, WEIGHTS, CascadeConfig, Plan, Slot
from ensemble.release import Release, ReleaseWriter
from market import tables
from market.kinds import KINDS
from market.world import population
from models.ranker import TASKS
from supply import rules
from tests.ensemble import synthetic


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = Plan.of(synthetic.release(tmp_path, 1))
    assert plan.markets == synthetic.MARKETS
    assert plan.tasks == synthetic.TASKS
    assert plan.columns == synthetic.COLUMNS
    assert plan.config.weights == WEIGHTS | synthetic.WEIGHTS
    assert plan == Plan.of(synthetic.release(tmp_path / "again", 1))
    assert isinstance(plan.config, CascadeConfig)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"slate": 0}, "cascade.slate is 0"),
        ({"seller_cap": 0}, "cascade.seller_cap is 0"),
        ({"category_cap": -1}, "cascade.category_cap is -1"),
        ({"seller_frequency": 0}, "cascade.seller_frequency is 0"),
        ({"content_frequency": 0}, "cascade.content_frequency is 0"),
        ({"fresh_exposures": -1}, "cascade.fresh_exposures is -1"),
        ({"trending_half_life_h": 0.0}, "cascade.trending_half_life_h is 0.0; it must be above 0"),
        ({"trending_prior": 0.0}, "cascade.trending_prior is 0.0; it must be above 0"),
        ({"category_share": 0.0}, "cascade.category_share is 0.0"),
        ({"category_share": 1.01}, "cascade.category_share is 1.01"),
        ({"slate": 70}, "slate 70 <= pool 60"),
        ({"pool": 101}, "pool 101 <= candidates 100"),
        ({"candidates": 501}, "candidates 501 <= retrieved 500"),
        ({"quotas": {"popular": 3}}, "cascade.quotas has 'popular'; there are two_tower"),
        ({"quotas": {"trending": -1}}, "cascade.quotas.trending is -1"),
        (
            {"retrieved": 200, "quotas": QUOTAS},
            "cascade.quotas add up to 500, but only 200 are retrieved, so the last channels would bring "
            "nothing; lower quotas, remove those that may be what the others leave, or raise "
            "cascade.retrieved to 500",
        ),
        ({"quotas": {"live": 501}}, "cascade.quotas add up to 501"),
        ({"weights": {"clicks": 1.0}}, "cascade.weights has 'clicks'; there are relevant, click"),
        ({"weights": {"click": float("nan")}}, "cascade.weights.click is nan"),
        ({"weights": {"order": -1.0}}, "cascade.weights.order is -1.0; it must not be negative"),
        ({"weights": {"negative": 1.0}}, "cascade.weights.negative is 1.0; it must not be positive"),
        (
            {"weights_for": {"Live": {}}},
            "cascade.weights_for has 'Live'; write a kind (video, live, product)",
        ),
        ({"weights_for": {"ZZ.live": {}}}, "cascade.weights_for has 'ZZ.live'"),
        ({"weights_for": {"ID.rooms": {}}}, "cascade.weights_for has 'ID.rooms'"),
        ({"weights_for": {"ID.": {}}}, "cascade.weights_for has 'ID.'"),
        ({"weights_for": {"live.ID": {}}}, "cascade.weights_for has 'live.ID'"),
        ({"weights_for": {"ID": {"buy": 1.0}}}, "cascade.weights_for.ID has 'buy'"),
        ({"price_usd": float("inf")}, "cascade.price_usd is inf"),
        ({"price_usd": -0.01}, "cascade.price_usd is -0.01"),
        ({"explore": -0.1}, "cascade.explore is -0.1"),
        ({"price_usd": 1e39}, "cascade.price_usd is 1e+39; it must be from 0 to 1"),
        ({"weights": {"order": 1e39}}, "cascade.weights.order is 1e+39; it must lie within 1e+09 of 0"),
        ({"rules": ("seller_cap", "luck")}, "cascade.rules has 'luck'; there are frequency_cap"),
        ({"rules": ("mmr", "dpp")}, "cascade.rules has mmr and dpp"),
        ({"rules": ("mmr", "mmr")}, "must name each rule once"),
        ({"explore": 0.6}, "cascade.explore is 0.6; it must be from 0 to 0.5"),
        ({"explore_outcomes": 0}, "cascade.explore_outcomes is 0"),
        ({"slots": ({"kind": "story", "most": 1},)}, "cascade.slots has kind 'story'"),
        ({"slots": ({"kind": "live", "most": -1},)}, "most -1 and within 0 of live must be at least 0"),
        (
            {"slots": ({"kind": "live", "most": 1, "within": -1},)},
            "most 1 and within -1 of live must be at least 0",
        ),
        ({"slots": ({"kind": "live"},)}, "cascade.slots says nothing of live; give most, least, or both"),
        ({"slots": ({"kind": "live", "least": 0},)}, "least 0 of live must be at least 1"),
        (
            {"slots": ({"kind": "live", "least": 2, "most": 1},)},
            "least 2 of live must not be more than most 1",
        ),
        (
            {"slots": ({"kind": "live", "least": 4, "within": 3},)},
            "cascade.slots ask for more than fits: 1 of live lack a place among the first of 10, of which "
            "1 are for exploration",
        ),
        ({"slots": ({"kind": "live", "least": 10},)}, "1 of live lack a place"),
        (
            {
                "slots": (
                    {"kind": "live", "least": 2, "within": 3},
                    {"kind": "video", "least": 2, "within": 3},
                )
            },
            "1 of live lack a place",
        ),
        (
            {"slots": ({"kind": "live", "most": 1},) * 12},
            "cascade.slots has 12, which makes 16 limits with the other rules; there may be 15 in all, so "
            "declare at most 11 slots",
        ),
        (
            {"slots": ({"kind": "live", "most": 1, "within": 11},)},
            "cascade.slots: within 11 of live goes beyond the 10 places of a slate; leave it out",
        ),
        (
            {"slots": ({"kind": "live", "most": 1}, {"kind": "live", "most": 2, "within": 10})},
            "cascade.slots says twice how many live there are at most among the first 10; keep one of them",
        ),
        (
            {"slots": ({"kind": "live", "least": 1, "within": 3}, {"kind": "live", "least": 1, "within": 3})},
            "cascade.slots says twice how many live there are at least among the first 3",
        ),
        (
            {"slots": ({"kind": "live", "most": 0}, {"kind": "live", "least": 1, "within": 5})},
            "cascade.slots ask for 1 live among the first 5, where they allow 0; lower least, raise most",
        ),
        (
            {"slots": ({"kind": "live", "most": 1, "within": 4}, {"kind": "live", "least": 3, "within": 5})},
            "cascade.slots ask for 2 live among the first 4, where they allow 1",
        ),
        (
            {"slots": tuple({"kind": kind, "most": most} for kind, most in zip(KINDS, (4, 3, 2)))},
            "cascade.slots leave a place empty among the first 10: they allow 4 video, 3 live, 2 product; "
            "raise the most of a kind",
        ),
        (
            {"slots": tuple({"kind": kind, "most": 0, "within": 1} for kind in KINDS)},
            "cascade.slots leave a place empty among the first 1: they allow 0 video, 0 live, 0 product",
        ),
    ],
)
def test_knobs_out_of_range_are_refused_by_name(knobs, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        CascadeConfig(**knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"retrieved": 500, "candidates": 500, "pool": 500, "slate": 500},
        {"retrieved": 1, "candidates": 1, "pool": 1, "slate": 1},
        {"fresh_exposures": 0, "price_usd": 0.0, "category_share": 1.0},
        {"weights": {"order": 1e9, "negative": -1e9}, "price_usd": 1e9},
        {"explore": 0.0},
        {"explore": 0.5},
        {"slots": ({"kind": "live", "least": 2, "most": 2, "within": 10},)},
        {"slots": ({"kind": "live", "most": 0, "within": 1},)},
        {"slots": tuple({"kind": kind, "most": most} for kind, most in zip(KINDS, (5, 3, 2)))},
    ],
)
def test_knobs_at_the_ends_of_their_ranges_are_taken(knobs):
    config = CascadeConfig(**knobs)
    assert replace(config) == config


@pytest.mark.parametrize(
    ("explore", "slate", "places"), [(0.1, 10, 1), (0.29, 100, 29), (0.3, 5, 1), (0.19, 5, 0), (0.5, 1, 0)]
)
def test_a_share_to_explore_is_of_whole_places_whatever_its_product_rounds_to(explore, slate, places):
    assert CascadeConfig(explore=explore, slate=slate, pool=100).explored == places
    assert CascadeConfig(explore=explore, slate=slate, pool=100, rules=("dpp",)).explored == 0


def test_as_many_slots_as_there_may_be_limits_are_taken_and_slots_without_their_rule_make_none():
    slots = [
        {"kind": kind, "most": 1, "within": place} for kind in ("live", "product") for place in range(10)
    ]
    assert len(CascadeConfig(slots=slots[:11]).slots) == 11
    assert len(CascadeConfig(slots=slots[:15], rules=("slots",)).slots) == 15
    assert len(CascadeConfig(slots=slots[:1] * 16, rules=("dpp",)).slots) == 16


def test_slots_that_ask_for_a_kind_make_one_limit_for_it():
    most = [{"kind": "live", "most": place, "within": place} for place in range(1, 11)]
    least = [{"kind": "live", "least": 1, "within": place} for place in range(7, 10)]
    assert len(CascadeConfig(slots=(*most, *least)).slots) == 13
    with pytest.raises(ValueError, match="makes 16 limits"):
        CascadeConfig(slots=(*most, least[0], {"kind": "video", "least": 1}))


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(1, 3), st.integers(0, 10)),
        max_size=4,
        unique_by=lambda slot: (slot[0], slot[2] or 10),
    ),
    st.sampled_from([0.0, 0.2]),
)
def test_reserved_places_are_enough_for_each_slot_and_refused_only_where_none_are(asked, explore):
    slots = tuple(Slot(kind, None, within, least) for kind, least, within in asked)
    free = 10 - int(10 * explore)
    ends = [min(slot.within or 10, free) for slot in slots]
    needs = [
        sum(
            max([s.least for s, e in zip(slots, ends) if s.kind == kind and e <= end], default=0)
            for kind in KINDS
        )
        for end in range(11)
    ]
    if any(need > end for end, need in enumerate(needs)):
        with pytest.raises(ValueError, match="ask for more than fits"):
            CascadeConfig(slots=slots, explore=explore)
        return
    places = CascadeConfig(slots=slots, explore=explore).reserved()
    every = [place for own in places.values() for place in own]
    assert len(set(every)) == len(every)
    assert set(every) <= set(range(free))
    for slot, end in zip(slots, ends):
        assert sum(place < end for place in places[slot.kind]) >= slot.least


def kept(slate, slots, free):
    """Whether a slate, a kind a place, keeps all slots; the least among the places that are not explored."""
    return all(
        slate[: slot.within or len(slate)].count(slot.kind)
        <= (len(slate) if slot.most is None else slot.most)
        and slate[: min(slot.within or len(slate), free)].count(slot.kind) >= (slot.least or 0)
        for slot in slots
    )


@given(
    st.integers(1, 5).flatmap(
        lambda slate: st.tuples(
            st.just(slate),
            st.lists(
                st.builds(
                    lambda kind, word, count, within: Slot(
                        kind, within=within, **{word: max(count, word == "least")}
                    ),
                    st.sampled_from(KINDS),
                    st.sampled_from(["most", "least"]),
                    st.integers(0, 3),
                    st.integers(0, slate),
                ),
                max_size=4,
                unique_by=lambda slot: (slot.kind, slot.within or slate, slot.least is None),
            ),
        )
    ),
    st.sampled_from([0.0, 0.2, 0.5]),
)
@settings(max_examples=400)
def test_slots_are_taken_where_a_slate_can_keep_them_all_and_refused_where_none_can(asked, explore):
    slate, slots = asked
    free = slate - int(slate * explore)
    taken = []
    for order in permutations(slots):  # of kinds that contend the sooner declared has the sooner place
        try:
            taken.append(CascadeConfig(slate=slate, slots=order, explore=explore))
        except ValueError as error:
            assert "cascade.slots" in str(error)  # noqa: PT017
    assert bool(taken) == any(kept(kinds, slots, free) for kinds in product(KINDS, repeat=slate))


def test_what_a_slot_does_not_declare_is_not_written(tmp_path):
    plan = Plan.of(synthetic.release(tmp_path, 1))
    slots = (Slot("live", 2), Slot("product", least=1, within=3))
    config = replace(plan.config, slots=slots, slate=5, pool=5, rules=("slots",))
    body = json.loads(json.dumps(replace(plan, config=config).to_json()))
    assert body["config"]["slots"] == [
        {"kind": "live", "most": 2, "within": 0},
        {"kind": "product", "within": 3, "least": 1},
    ]
    assert CascadeConfig(**asdict(config)).slots == slots


@pytest.mark.parametrize(
    ("knobs", "quotas"),
    [
        ({}, QUOTAS),
        ({"retrieved": 900}, QUOTAS),
        ({"quotas": {"live": 0}}, QUOTAS | {"live": 0}),
        ({"retrieved": 200}, dict(zip(QUOTAS, (24, 48, 24, 32, 16, 8, 8, 40)))),
        ({"quotas": {"fresh": 290}}, dict(zip(QUOTAS, (30, 60, 30, 290, 20, 10, 10, 50)))),
        ({"quotas": {"fresh": 500}}, dict.fromkeys(QUOTAS, 0) | {"fresh": 500}),
    ],
)
def test_channels_without_a_quota_share_what_the_declared_ones_leave(knobs, quotas):
    config = CascadeConfig(**knobs)
    assert config.quotas == quotas
    assert CascadeConfig(**asdict(config)).quotas == quotas


def test_the_narrowest_declaration_of_a_weight_holds():
    config = CascadeConfig(
        weights={"click": 1.0, "cart": 0.5, "order": 0},
        weights_for={"live": {"click": 2.0}, "ID": {"click": 3.0}, "ID.live": {"click": 4.0}},
    )
    asked = [("GB", "video"), ("GB", "live"), ("ID", "video"), ("ID", "live")]
    assert [config.weight("click", market, kind) for market, kind in asked] == [1.0, 2.0, 3.0, 4.0]
    assert (
        replace(config, weights_for={"ID": {"click": 3.0}, "live": {"click": 2.0}}).weight(
            "click", "ID", "live"
        )
        == 3.0
    )
    assert config.weight("cart", "ID", "live") == 0.5
    assert config.weight("order", "ID", "live") == 0.0
    assert CascadeConfig(weights_for={"NL.live": {"click": 9.0}}).weight("click", "NL", "live") == 9.0


def test_a_weight_that_is_not_declared_has_its_default_and_0_switches_an_outcome_off():
    config = CascadeConfig(weights={"order": 2.0, "negative": 0})
    assert config.weights == WEIGHTS | {"order": 2.0, "negative": 0}
    assert CascadeConfig(**asdict(config)).weights == config.weights
    assert config.weight("relevant", "ID", "video") == WEIGHTS["relevant"]


def test_what_the_weights_of_an_older_release_leave_out_counts_nothing(tmp_path):
    now = synthetic.release(tmp_path, 1)
    with ReleaseWriter(tmp_path / "older", name="older") as older:
        older.copy(now)
        body = now.json(FILE)
        body["config"]["weights"] = {"click": 0.5}
        older.json(FILE, body)
    weights = Plan.of(Release.open(tmp_path / "older")).config.weights
    assert {task: weight for task, weight in weights.items() if weight} == {"click": 0.5}


def test_an_older_release_learned_until_the_end_of_its_log(tmp_path):
    now = synthetic.release(tmp_path, 1)
    with ReleaseWriter(tmp_path / "older", name="older") as older:
        older.copy(now)
        body = now.json(FILE)
        del body["learned_until"]
        older.json(FILE, body)
    assert Plan.of(Release.open(tmp_path / "older")).learned_until == synthetic.END


def test_kinds_are_those_of_the_contract():
    assert KINDS is tables.KINDS is rules.KINDS is population.KINDS


def test_every_task_of_the_ranker_has_a_worth():
    assert set(WEIGHTS) == set(TASKS)
