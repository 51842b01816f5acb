"""Candidates are eligible, distinct, filled by quota, and say where they came from."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ensemble.channels import ANYTHING, Channel, Wishes, first_eligible, nearest
from ensemble.explanation import FUNNEL
from ensemble.plan import FILE, Plan, Slot
from ensemble.preranking import PreRanker
from ensemble.release import Release, ReleaseWriter
from ensemble.stages.retrieval import CHANNELS, Retrieval, distinct, merge
from market.item_graph import ItemGraph
from market.kinds import KINDS
from market.moments import moment_features
from market.offers import Offers
from market.statistics import pair_features
from tests.ensemble import synthetic
from tests.ensemble.channels.asking import NEVER, NOW, asked, shelf

SEEDS = st.integers(0, 15)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))


def ask(release, seed, rows):
    """Random requests, many of them in the very second in which a content is published or ends."""
    random, plan = np.random.default_rng(seed), Plan.of(release)
    opens, ends = release.array("created_at.npy"), release.array("ended_at.npy")
    anywhere = random.integers(synthetic.START, synthetic.END + 50_000, len(opens))
    sellers = np.r_[np.unique(release.array("seller_code.npy")), -1, -1]
    no_category = int(release.array("category_code.npy").max()) + 1
    moments = np.concatenate([opens, ends[ends < synthetic.NEVER], anywhere])
    return {
        "query_vector": random.integers(-2, 3, (rows, plan.dim)).astype(np.float32),
        "market_index": random.integers(0, len(plan.markets), rows),
        "time": random.choice(moments, rows),
        "recent": random.integers(-1, len(opens), (rows, synthetic.HISTORY)),
        "seen": random.integers(-1, len(opens), (rows, int(random.integers(0, 12)))),
        "followed": np.array(
            [np.where(random.random(3) < 0.6, random.permutation(sellers)[:3], -1) for _ in range(rows)]
        ),
        "tired_sellers": random.choice(sellers, (rows, 2)),
        "speaks": random.integers(-1, 2, rows),
        "excluded_sellers": np.where(random.random((rows, 2)) < 0.2, random.choice(sellers, (rows, 2)), -1),
        "reads": np.where(random.random((rows, 2)) < 0.2, random.integers(0, 2, (rows, 2)), -1),
        "asked_kinds": np.where(random.random(rows) < 0.2, random.integers(0, 2 ** len(KINDS), rows), 0),
        "asked_categories": np.where(
            random.random((rows, 2)) < 0.1, random.integers(0, no_category + 1, (rows, 2)), -1
        ),
        "excluded_categories": np.where(
            random.random((rows, 2)) < 0.1, random.integers(-1, no_category, (rows, 2)), -1
        ),
    }


def spared(request, row):
    """Sellers none of whose contents a request may get."""
    return [*request["tired_sellers"][row].tolist(), *request["excluded_sellers"][row].tolist()]


def everywhere(graph, history):
    """float32[B, N], what the histories' edges add up to."""
    made = np.zeros((len(history), len(graph.neighbours)))
    for row, past in enumerate(history):
        for content in past[past >= 0]:
            np.add.at(made[row], graph.neighbours[content], graph.weights[content])
    return made.astype(np.float32)


@lru_cache(maxsize=16)
def columns_of(release):
    """What the rules of eligibility ask for, as Python values; a release never changes."""
    names = ("available", "created_at", "ended_at", "stock")
    codes = ("language_code", "seller_code", "kind_code", "category_code")
    return [release.array(f"{name}.npy").tolist() for name in (*names, *codes)]


def wished(request, row):
    """What a request asks for, as `eligible` takes it."""
    names = {"categories": "asked_categories"} | {name: name for name in ("excluded_categories", "reads")}
    said = {name: request[tensor][row].tolist() for name, tensor in names.items()}
    return said | {"kinds": int(request["asked_kinds"][row])}


def eligible(
    release,
    market,
    time,
    seen,
    tired=(),
    refilled=(),
    reads=(),
    shut=(),
    kinds=0,
    categories=(),
    excluded_categories=(),
):
    """Places of contents that may be shown, by their rules one at a time; `refilled` have stock again, and
    those that are `shut` may be shown to nobody."""
    available, opens, ends, stock, language, seller, kind, category = columns_of(release)
    named = {*categories} - {-1}
    running = [
        c
        for c in range(len(language))
        if available[market][c] and opens[c] <= time < ends[c] and c not in shut
        if stock[c] != 0 or c in refilled
        if not kinds or kinds & 2 ** kind[c]
        if not named or category[c] in named
        if category[c] < 0 or category[c] not in excluded_categories
    ]
    read = {-1, *reads} if {language[c] for c in running} & {*reads} - {-1} else {-1, *language}
    return [
        c
        for c in running
        if c not in seen and (seller[c] < 0 or seller[c] not in tired) and language[c] in read
    ]


@given(SEEDS, st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=80)
def test_candidates_are_what_a_search_one_by_one_finds(worlds, world, seed, rows):
    release = worlds(world)
    stage, plan = Retrieval(release), Plan.of(release)
    vectors, trend = release.array("content_vectors.npy"), release.array("trend.npy")
    worth = release.array("worth.npy")
    exposures, opens = release.array("exposures.npy"), release.array("created_at.npy")
    rooms, seller = release.array("text_kind.npy") == "live", release.array("seller_code.npy")
    request = ask(release, seed, rows)
    made = stage.retrieve(**request)
    size = plan.config.retrieved
    graph = ItemGraph(release.array("graph_neighbours.npy"), release.array("graph_weights.npy"))
    affinity = everywhere(graph, request["recent"])
    for row in range(rows):
        market, time = request["market_index"][row], request["time"][row]
        seen = request["seen"][row]
        may = eligible(release, market, time, seen, spared(request, row), **wished(request, row))
        near = sorted(may, key=lambda c: (-float(vectors[c] @ request["query_vector"][row]), c))[:size]
        related = sorted((c for c in may if affinity[row, c] > 0), key=lambda c: (-affinity[row, c], c))[
            :size
        ]
        newest = sorted(may, key=lambda c: (-opens[c], c))
        followed = set(request["followed"][row].tolist()) - {-1}
        by_channel = {
            "two_tower": near,
            "item_graph": related,
            "trending": sorted(may, key=lambda c: (-trend[market, c], c))[:size],
            "fresh": [c for c in newest if exposures[market, c] <= plan.config.fresh_exposures][:size],
            "live": [c for c in newest if rooms[c]][:size],
            "followed": [c for c in newest if seller[c] in followed][:size],
            "cart": [c for c in dict.fromkeys(request["recent"][row, ::-1].tolist()) if c in may],
            "worth": sorted(
                (c for c in may if not np.isnan(worth[market, c])), key=lambda c: (-worth[market, c], c)
            )[:size],
        }
        heads = [c for name, found in by_channel.items() for c in found[: plan.config.quotas[name]]]
        rests = [c for name, found in by_channel.items() for c in found[plan.config.quotas[name] :]]
        expected = list(dict.fromkeys([*heads, *rests]))[:size]
        # The first channel has all that there is, so the others are not asked for more than their quotas.
        others = by_channel.keys() - {"two_tower"}
        by_channel |= {name: by_channel[name][: plan.config.quotas[name]] for name in others}
        found = made["candidates"][row]
        assert found.tolist() == expected + [-1] * (size - len(expected))
        for place, content in enumerate(expected):
            assert made["retrieval_score"][row, place] == vectors[content] @ request["query_vector"][row]
            bits = Channel(int(made["channel"][row, place]))
            for name, proposed in by_channel.items():
                assert (Channel[name.upper()] in bits) == (content in proposed)
        assert (made["channel"][row, len(expected) :] == 0).all()


@given(SEEDS, st.integers(0, 10**6))
@settings(max_examples=30)
def test_no_ineligible_and_no_repeated_content_is_a_candidate(worlds, world, seed):
    release = worlds(world)
    request = ask(release, seed, 16)
    candidates = Retrieval(release)(**request)["candidates"]
    opens, ends = release.array("created_at.npy"), release.array("ended_at.npy")
    rows, places = np.nonzero(candidates >= 0)
    found, time = candidates[rows, places], request["time"][rows]
    assert release.array("available.npy")[request["market_index"][rows], found].all(), "sold elsewhere"
    assert (opens[found] <= time).all(), "not published yet"
    assert (time < ends[found]).all(), "ended"
    assert (release.array("stock.npy")[found] != 0).all(), "sold out"
    seller = release.array("seller_code.npy")[found, None]
    assert not ((request["tired_sellers"][rows] == seller) & (seller >= 0)).any(), "of a tiring seller"
    assert not ((request["excluded_sellers"][rows] == seller) & (seller >= 0)).any(), "of an excluded seller"
    assert not (request["seen"][rows] == found[:, None]).any(), "seen or excluded"
    assert len(np.unique(np.stack([rows, found]), axis=1).T) == len(found), "twice"


@given(SEEDS, st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_batch_has_the_candidates_of_its_requests_one_by_one(worlds, world, seed):
    release = worlds(world)
    stage, request = Retrieval(release), ask(release, seed, 7)
    batch = stage(**request)
    alone = [stage(**{name: array[[row]] for name, array in request.items()}) for row in range(7)]
    for name, array in batch.items():
        np.testing.assert_array_equal(array, np.concatenate([one[name] for one in alone]), name)


def test_candidates_carry_their_stored_features_and_the_pairs(worlds):
    release = worlds(3)
    stage, request = Retrieval(release), ask(release, 1, 8)
    made = stage(**request)
    popularity, opens = release.array("popularity.npy"), release.array("created_at.npy")
    row, place = np.argwhere(made["candidates"] >= 0)[0]
    content, market = made["candidates"][row, place], request["market_index"][row]
    assert made["content_ids"][row, place].tolist() == release.array("content_ids.npy")[content].tolist()
    here, world = popularity[market, [content]], release.array("popularity_world.npy")[[content]]
    graph = ItemGraph(release.array("graph_neighbours.npy"), release.array("graph_weights.npy"))
    affinity = everywhere(graph, request["recent"])
    pair = pair_features(
        here,
        world,
        opens[[content]],
        request["time"][[row]],
        affinity[row, [content]],
        stage.offers(
            np.array([market]), np.array([content]), request["speaks"][[row]], request["reads"][[row]]
        ),
        moment_features(
            stage.moments,
            np.array([content]),
            request["time"][[row]],
            lambda shown: affinity[row, shown],
        ),
    )[0]
    expected = [*release.array("content_numbers.npy")[content], *pair]
    np.testing.assert_allclose(made["content_numbers"][row, place], expected, rtol=1e-6)


def test_where_the_log_knows_no_times_contents_are_the_same_at_every_time(worlds, tmp_path):
    release = worlds(3)
    with ReleaseWriter(tmp_path / "timeless", name="timeless") as other:
        other.copy(release)
        other.json(FILE, replace(Plan.of(release), as_of=0).to_json())
    stage, request = Retrieval(Release.open(tmp_path / "timeless")), ask(release, 1, 8)
    given = {name: request[name] for name in ("market_index", "recent", "speaks")}
    candidates = np.arange(16).reshape(8, 2)
    first, later = (
        stage.describe(candidates, time=request["time"] + after, **given) for after in (0, 50_000)
    )
    np.testing.assert_array_equal(first["content_numbers"], later["content_numbers"])


def test_a_market_reads_the_ids_that_stand_in_for_those_of_contents(worlds, tmp_path):
    release = worlds(3)
    stand_ins = np.zeros_like(release.array("stand_in_ids.npy"))
    stand_ins[1, 0] = 2
    with ReleaseWriter(tmp_path / "stand-ins", name="stand-ins") as other:
        other.copy(release)
        other.array("stand_in_ids.npy", stand_ins)
    stage, request = Retrieval(Release.open(tmp_path / "stand-ins")), ask(release, 1, 8)
    made = stage(**request)
    there = (request["market_index"] == 1)[:, None] & (made["candidates"] >= 0)
    own = np.where(made["candidates"][..., None] >= 0, stage.content_ids[made["candidates"]], 0)
    assert there.any()
    assert (made["content_ids"][..., 0] == np.where(there, 2, own[..., 0])).all()
    np.testing.assert_array_equal(made["content_ids"][..., 1:], own[..., 1:])


@given(SEEDS, st.integers(0, 10**6))
@settings(max_examples=30)
def test_pre_ranking_keeps_the_best_of_what_was_retrieved_and_a_share_of_each_category(worlds, world, seed):
    release = worlds(world)
    stage, request, size = Retrieval(release), ask(release, seed, 5), Plan.of(release).config.candidates
    every, kept = stage.retrieve(**request), stage(**request)
    if (preranker := PreRanker.of(release)) is None:
        order = np.arange(every["candidates"].shape[1])[None].repeat(5, axis=0)
    else:
        numbers = [every["content_numbers"]]
        if release.array("low_rank_source.npy").size:
            numbers.append(np.arcsinh(50 * every["low_rank_affinity"])[..., None] / 2)
        if release.array("conversion.npy").any():
            numbers.append(every["conversion"][..., None])
        numbers = np.concatenate(numbers, axis=-1)
        score = preranker(request["query_vector"], every["candidates"], numbers, every["retrieval_score"])
        assert (np.isfinite(score) == (every["candidates"] >= 0)).all()
        order = np.argsort(-score, axis=1, kind="stable")
        category, most = release.array("category_code.npy"), max(round(size * 0.15), 1)
        for row, contents in enumerate(every["candidates"]):
            taken, late = Counter(), []
            for place in order[row]:
                group = category[contents[place]] if contents[place] >= 0 else -1
                taken[group] += 1
                if group >= 0 and taken[group] > most:
                    late.append(place)
            there = [place for place in order[row] if contents[place] >= 0 and place not in late]
            order[row] = [*there, *late, *np.flatnonzero(contents < 0)]
    config, kind = Plan.of(release).config, release.array("kind_code.npy")
    for row, contents in enumerate(every["candidates"]):
        own = set()
        for name, places in config.reserved().items():
            of_kind = [p for p in order[row] if contents[p] >= 0 and KINDS[kind[contents[p]]] == name]
            own |= set(of_kind[: size * len(places) // config.slate])
        first = [*[p for p in order[row] if p in own], *[p for p in order[row] if p not in own]][:size]
        order[row, :size] = [p for p in order[row] if p in first]
    said = (
        np.zeros(every["candidates"].shape) if preranker is None else np.where(np.isfinite(score), score, 0)
    )
    ids = release.array("content_ids.npy")[every["candidates"]]
    ids[every["candidates"] < 0] = 0
    said = {"preranking_score": said.astype(np.float32), "content_ids": ids}
    for name, array in (every | said).items():
        expected = np.stack([row[places] for row, places in zip(array, order[:, :size])])
        np.testing.assert_array_equal(kept[name], expected, name)
    assert not kept["funnel"].any(), "nobody asked"


def test_of_a_kind_that_slots_ask_for_as_large_a_part_is_let_through_as_its_places_are_of_the_slate(
    worlds, tmp_path
):
    release = worlds(3)
    contents, plan = len(release.array("created_at.npy")), Plan.of(release)
    sizes = {"retrieved": 40, "candidates": 10, "pool": 10, "slate": 5, "explore": 0.0}
    slots = (Slot("live", least=1, within=5),)
    config = replace(plan.config, **sizes, quotas={"two_tower": 40}, rules=("slots",), slots=slots)
    with ReleaseWriter(tmp_path / "kinds", name="kinds") as other:
        other.copy(release)
        other.json(FILE, replace(plan, config=config).to_json())
        live, video = KINDS.index("live"), KINDS.index("video")
        other.array("kind_code.npy", np.where(np.arange(contents) < 20, live, video).astype(np.int8))
        other.array("category_code.npy", np.full(contents, -1, np.int32))
    candidates = np.arange(40)[None]
    score = np.where(candidates < 20, -candidates, 100 - candidates).astype(np.float32)
    best = Retrieval(Release.open(tmp_path / "kinds")).let_through(candidates, score)
    assert best.tolist() == [[*range(20, 28), 0, 1]]


def test_candidates_carry_the_conversion_of_contents_also_where_that_of_some_is_zero(worlds, tmp_path):
    release = worlds(4)
    conversion = np.arange(len(release.array("created_at.npy")), dtype=np.float32) % 3 + 1
    conversion[1::2] = 0
    with ReleaseWriter(tmp_path / "some", name="some") as other:
        other.copy(release)
        other.array("conversion.npy", conversion)
    made = Retrieval(Release.open(tmp_path / "some")).retrieve(**ask(release, 1, 8))
    candidates = made["candidates"]
    assert {-1, 0, 1} <= set(candidates.ravel().tolist())
    expected = np.where(candidates >= 0, conversion[candidates], 0)
    np.testing.assert_array_equal(made["conversion"], expected)


def test_the_funnel_counts_what_was_retrieved_and_what_was_kept(worlds):
    release = worlds(5)
    stage, request = Retrieval(release), ask(release, 1, 8)
    every, made = stage.retrieve(**request)["candidates"], stage(**request | {"explain": np.arange(8) > 0})
    assert (made["candidates"][1:] == 0).any(), "the first of the table is one of them"
    for name, candidates in (("retrieved", every), ("kept", made["candidates"])):
        counted = (candidates >= 0).sum(axis=1)
        assert made["funnel"][1:, FUNNEL.index(name)].tolist() == counted[1:].tolist()
    assert not made["funnel"][0].any(), "it did not ask"


def test_the_funnel_counts_apart_what_gave_way_to_other_categories(worlds, tmp_path):
    release = worlds(3)
    contents, plan = len(release.array("created_at.npy")), Plan.of(release)
    request = {name: array[:4] for name, array in ask(release, 2, 4).items()} | {"explain": np.ones(4, bool)}
    category = np.arange(contents, dtype=np.int32) % 3
    gave_way = {}
    for share in (0.3, 1.0):
        with ReleaseWriter(tmp_path / str(share), name="shares") as other:
            other.copy(release)
            other.json(FILE, replace(plan, config=replace(plan.config, category_share=share)).to_json())
            other.array("category_code.npy", category)
        made = Retrieval(Release.open(tmp_path / str(share)))(**request)
        gave_way[share] = made["funnel"][:, FUNNEL.index("gave_way")]
        if share == 0.3:
            spread = made["candidates"]
    # Without a share what is kept is the best, and what is not among it any more gave way.
    expected = [len({*best} - {*kept}) for best, kept in zip(made["candidates"].tolist(), spread.tolist())]
    assert gave_way[0.3].tolist() == expected
    assert any(expected)
    assert not gave_way[1.0].any()


def test_a_share_that_is_less_than_a_content_lets_one_of_each_category_go_first(worlds, tmp_path):
    release = worlds(3)
    plan, contents = Plan.of(release), len(release.array("created_at.npy"))
    config = replace(plan.config, category_share=0.001, slots=())
    with ReleaseWriter(tmp_path / "small", name="shares") as other:
        other.copy(release)
        other.json(FILE, replace(plan, config=config).to_json())
        other.array("category_code.npy", np.arange(contents, dtype=np.int32) % 3)
    stage = Retrieval(Release.open(tmp_path / "small"))
    candidates = np.arange(min(contents, config.retrieved))[None]
    worth = -(candidates // 3 + candidates % 3 * 100).astype(np.float32)  # the categories one after another
    assert stage.let_through(candidates, worth)[0, :4].tolist() == [0, 1, 2, 3]


def test_candidates_of_equal_score_go_through_in_the_order_in_which_they_were_found(worlds, tmp_path):
    release = worlds(3)
    plan, contents = Plan.of(release), len(release.array("created_at.npy"))
    config = replace(plan.config, slots=())
    with ReleaseWriter(tmp_path / "equal", name="equal") as other:
        other.copy(release)
        other.json(FILE, replace(plan, config=config).to_json())
        other.array("category_code.npy", np.full(contents, -1, np.int32))
    candidates = np.random.default_rng(1).permutation(contents)[None]
    best = Retrieval(Release.open(tmp_path / "equal")).let_through(candidates, np.zeros((1, contents)))
    assert contents > 32
    assert best.tolist() == [[*range(min(contents, config.candidates))]]


def test_a_language_that_is_said_over_and_over_is_read_once(worlds):
    """Ten thousand in one request took a batch of 64 with 500 candidates each five seconds and a gigabyte."""

    class Seen(Offers):
        def __call__(self, market, content, speaks, reads=None):
            width.append(reads.shape[-1])
            return super().__call__(market, content, speaks, reads)

    width, stage, request = [], Retrieval(worlds(3)), ask(worlds(3), 4, 6)
    request["reads"] = np.array([[-1, -1], [0, -1], [1, 0], [0, 1], [-1, 1], [1, 1]])
    once = stage(**request)
    stage.offers = Seen(**vars(stage.offers))
    often = stage(**request | {"reads": np.tile(request["reads"], 500)})
    assert width == [2]
    for name, array in once.items():
        np.testing.assert_array_equal(often[name], array, name)
    request["reads"][:] = -1
    stage(**request)
    assert width == [2, 1]


@given(arrays(np.int64, st.tuples(st.integers(0, 3), st.integers(0, 6)), elements=st.integers(-1, 3)))
def test_distinct_codes_are_all_that_a_row_has_and_no_more_than_the_most_of_one(codes):
    found = distinct(codes)
    assert [set(row) for row in found.tolist()] == [set(row) for row in codes.tolist()]
    assert found.shape[1] == max((len(set(row)) for row in codes.tolist()), default=0)


def test_some_of_the_requests_of_a_market_ask_for_what_they_asked_among_all():
    every = asked(shelf(4), recent=[[0], [1], [2]], seen=[[1], [2], [3]], followed=[[4], [5], [6]])
    every = replace(every, time=np.arange(3), query_vector=np.eye(3), spared=np.arange(3)[:, None])
    every_wish = Wishes(np.arange(3), *(np.arange(3)[:, None] + begin for begin in (3, 7, 11)))
    for wishes in (Wishes(), every_wish):
        some = replace(every, wishes=wishes).of(np.array([0, 2]))
        for name in ("query_vector", "time", "recent", "seen", "followed", "spared"):
            np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[[0, 2]], name)
        for name, said in vars(wishes).items():
            got = getattr(some.wishes, name)
            assert got is None if said is None else (got == said[[0, 2]]).all()


def test_where_the_first_channel_fills_the_places_others_are_asked_for_their_quotas_alone(worlds, tmp_path):
    release = worlds(3)
    plan = Plan.of(release)
    sizes = {"retrieved": 4, "candidates": 4, "pool": 1, "slate": 1, "slots": ()}
    quotas = dict.fromkeys(plan.config.quotas, 0) | {"two_tower": 2, "trending": 1}
    with ReleaseWriter(tmp_path / "few", name="few") as other:
        other.copy(release)
        other.json(FILE, replace(plan, config=replace(plan.config, **sizes, quotas=quotas)).to_json())
    made = Retrieval(Release.open(tmp_path / "few")).retrieve(**ask(release, 1, 40))
    full = (made["candidates"] >= 0).all(axis=1)
    assert full.sum() > 10
    assert ((made["channel"][full] & Channel.TRENDING > 0).sum(axis=1) == 1).all()


def test_the_funnel_counts_what_a_request_may_not_get_by_the_first_reason_that_holds(worlds):
    release = worlds(5)
    request, counted = ask(release, 3, 60), np.zeros(5)
    funnel = Retrieval(release)(**request, explain=np.ones(60, bool))["funnel"]
    for row in range(60):
        seen, excluded, tired, market, time = (
            request[name][row].tolist()
            for name in ("seen", "excluded_sellers", "tired_sellers", "market_index", "time")
        )
        wishes = wished(request, row)
        in_all = wishes | {"reads": []}
        left = [
            len(eligible(release, market, time, hidden, sellers, **said))
            for hidden, sellers, said in (
                ((), (), {}),
                (seen, (), {}),
                (seen, (), in_all),
                (seen, excluded, in_all),
                (seen, excluded + tired, in_all),
                (seen, excluded + tired, wishes),
            )
        ]
        first = FUNNEL.index("seen or excluded")
        assert funnel[row, first : first + 5].tolist() == (-np.diff(left)).tolist()
        counted += -np.diff(left)
    assert counted.all()


def test_what_is_withheld_is_open_from_the_second_in_which_it_opens_until_that_in_which_it_ends():
    of, nobody = shelf(3, opens=[NOW, 1, 1], ends=[NEVER, NOW + 1, NOW]), np.full((1, 0), -1)
    assert of.withheld(np.array([NOW]), np.array([[0, 1, 2]]), nobody, nobody, ANYTHING) == [2, 0, 0, 0, 0]


def test_everything_excluded_leaves_no_candidate(worlds):
    release = worlds(3)
    stage = Retrieval(release)
    contents = release.array("available.npy").shape[1]
    request = ask(release, 1, 4) | {"seen": np.tile(np.arange(contents), (4, 1))}
    made = stage(**request)
    assert (made["candidates"] == -1).all()
    assert not made["retrieval_score"].any()
    assert not made["channel"].any()


SCORES = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=width, max_size=width),
        min_size=1,
        max_size=5,
    )
)


@given(SCORES, st.integers(1, 15))
def test_nearest_is_a_full_sort_with_ties_by_place(scores, k):
    found = nearest(np.array(scores, np.float32), k)
    for row, places in zip(scores, found):
        best = sorted((p for p in range(len(row)) if row[p] > -np.inf), key=lambda p: (-row[p], p))[:k]
        assert places.tolist() == best + [-1] * (min(k, len(row)) - len(best))


@given(st.permutations(range(8)), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 10))
def test_the_first_eligible_keep_their_order(order, allowed, k):
    may = np.array([allowed])
    found = first_eligible(np.array(order), lambda places: may[:, places], 1, k)[0]
    first = [place for place in order if allowed[place]][:k]
    assert found.tolist() == first + [-1] * (min(k, 8) - len(first))


@st.composite
def every_channel(draw):
    """Ranked lists of distinct places, filled up with -1, with quotas and a size."""

    def ranked(width):
        places = draw(st.lists(st.integers(0, 12), unique=True, max_size=width))
        return places + [-1] * (width - len(places))

    lists = [ranked(draw(st.integers(0, 9))) for _ in CHANNELS]
    return lists, [draw(st.integers(0, 5)) for _ in lists], draw(st.integers(1, 12))


@given(every_channel())
def test_a_merge_takes_quotas_first_and_tells_every_channel(channels):
    lists, quotas, size = channels
    places, bits = merge([np.array([places], np.int64) for places in lists], quotas, tuple(CHANNELS), size)
    heads = [place for found, quota in zip(lists, quotas) for place in found[:quota]]
    rests = [place for found, quota in zip(lists, quotas) for place in found[quota:]]
    expected = list(dict.fromkeys(place for place in (*heads, *rests) if place >= 0))[:size]
    assert [place for place in places[0] if place >= 0] == expected
    assert (places[0, len(expected) :] == -1).all()
    for place, bit in zip(expected, bits[0]):
        assert [bool(bit & channel) for channel in CHANNELS] == [place in found for found in lists]
