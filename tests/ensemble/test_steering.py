"""Rules and live state hold in every slate; and while anything may be shown, something is."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.channels.live import live
from ensemble.explanation import Explanation
from ensemble.plan import Plan
from ensemble.stages.reordering import Reordering
from ensemble.stages.retrieval import Retrieval
from ensemble.steering import Steering
from supply.eligibility import BARRED
from supply.journal import Journal
from supply.rules import Rules
from tests.ensemble import synthetic
from tests.ensemble.channels.asking import asked
from tests.ensemble.test_retrieval import ask, eligible, spared, wished

SEEDS = st.integers(0, 15)
NUMBERS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))


def slates(steering, release, request, between=lambda: None):
    """Rows of the contents in each slate; `between` happens while the candidates are ranked."""
    ids = release.array("text_content_id.npy").tolist()
    made = answers(steering, release, request, between)
    return [[ids.index(content) for content in row if content] for row in made["content_id"]]


def answers(steering, release, request, between=lambda: None, explain=False):
    """What re-ordering says of requests."""
    plan, random = Plan.of(release), np.random.default_rng(5)
    retrieval, reordering = Retrieval(release, steering), Reordering(release, steering)
    asked = np.full(len(request["time"]), explain)
    found = retrieval(**request | {"explain": asked})
    between()
    return reordering(
        candidates=found["candidates"],
        retrieval_score=found["retrieval_score"],
        channel=found["channel"],
        probabilities=random.random((*found["candidates"].shape, len(plan.tasks))).astype(np.float32),
        diversity=np.full(len(found["candidates"]), 0.2, np.float32),
        market_index=request["market_index"],
        time=request["time"],
        exposed=np.zeros((len(found["candidates"]), 0), np.int64),
        seed=np.zeros(len(found["candidates"]), np.int64),
        explain=asked,
        preranking_score=found["preranking_score"],
        clock=np.zeros((len(found["candidates"]), 2), np.int64),
        funnel=found["funnel"],
    )


def told(release, random, count):
    """Random events about the release's own contents and sellers, with what they close in the end."""
    ids, sellers = release.array("text_content_id.npy"), release.array("seller_ids.npy")
    made = []
    for at in range(count):
        name = random.choice(["ended", "taken_down", "put_back", "stock", "seller_suspended", "viewers"])
        about = {"seller": str(random.choice(sellers))} if name == "seller_suspended" else {}
        about = about or {"content": str(random.choice(ids))}
        value = {"stock": {"stock": int(random.integers(0, 2))}, "viewers": {"viewers": at}}.get(name, {})
        made.append({"event": str(name), **about, "time": at, **value})
    return made


def closed(release, events):
    """Contents that events have closed: by a plain reading, one event after the other."""
    ids = release.array("text_content_id.npy").tolist()
    seller = release.array("seller_code.npy")
    names = release.array("seller_ids.npy").tolist()
    ended, down, stock = set(), set(), {}
    for event in events:
        row = ids.index(event["content"]) if "content" in event else None
        if event["event"] == "ended":
            ended.add(row)
        elif event["event"] == "taken_down":
            down.add(row)
        elif event["event"] == "put_back":
            down.discard(row)
        elif event["event"] == "stock":
            stock[row] = event["stock"]
        elif event["event"] == "seller_suspended":
            ended |= set(np.flatnonzero(seller == names.index(event["seller"])).tolist())
    return ended | down | {row for row, left in stock.items() if left == 0}, {
        r for r, n in stock.items() if n
    }


@given(SEEDS, NUMBERS, st.integers(0, 40))
@settings(max_examples=60)
def test_a_slate_holds_only_what_may_be_shown_and_is_empty_only_where_nothing_may(
    worlds, tmp_path_factory, world, seed, count
):
    release, random = worlds(world), np.random.default_rng(seed)
    state = tmp_path_factory.mktemp("state")
    events = told(release, random, count)
    Journal(state).append(events)
    forbidden = [f"seller-{code}" for code in random.permutation(6)[:2]]
    rules = Rules(forbidden_sellers={"GB": tuple(forbidden)}, forbidden_kinds={"BR": ("live",)})
    request = ask(release, seed, 6)
    # Some requests leave a single content that may be shown.
    for row in range(3):
        seen = random.permutation(len(release.array("created_at.npy")))[1:]
        request["seen"] = np.pad(request["seen"], ((0, 0), (0, len(seen))), constant_values=-1)
        request["seen"][row, -len(seen) :] = seen
    shut, refilled = closed(release, events)
    kind, sellers = release.array("text_kind.npy"), release.array("text_seller_id.npy")
    size = Plan.of(release).config.slate
    for row, slate in enumerate(slates(Steering(rules, state), release, request)):
        market, time = request["market_index"][row], request["time"][row]
        barred = set(shut)
        if synthetic.MARKETS[market] == "GB":
            barred |= set(np.flatnonzero(np.isin(sellers, forbidden)).tolist())
        if synthetic.MARKETS[market] == "BR":
            barred |= set(np.flatnonzero(kind == "live").tolist())
        may = set(
            eligible(
                release,
                market,
                time,
                request["seen"][row],
                spared(request, row),
                refilled,
                shut=barred,
                **wished(request, row),
            )
        )
        assert set(slate) <= may
        assert len(slate) == len(set(slate)) == min(size, len(may))


@pytest.mark.parametrize("why", ["a rule", "an event"])
def test_where_nothing_in_the_languages_may_be_shown_contents_of_all_are(worlds, tmp_path, why):
    release, market = worlds(3), synthetic.MARKETS.index("GB")
    request = asked_once(release, market)
    may = eligible(release, market, synthetic.END, [])
    language = release.array("language_code.npy")
    read = next(code for code in language[may] if code >= 0)
    request["reads"][:] = read
    ids, sellers = release.array("text_content_id.npy"), release.array("text_seller_id.npy")
    theirs = [c for c in may if language[c] == read]
    if why == "a rule":
        steering = Steering(Rules(forbidden_sellers={"GB": tuple(map(str, {*sellers[theirs]} - {""}))}))
    else:
        steering = Steering(state=tmp_path)
        Journal(tmp_path).append([{"event": "ended", "content": str(ids[c]), "time": 5} for c in theirs])

    def spoken(steering):
        found = Retrieval(release, steering)(**request)["candidates"]
        return set(language[found[found >= 0]].tolist())

    assert {read} <= spoken(Steering()) <= {read, -1}
    assert spoken(steering) - {-1} == set(language[may].tolist()) - {read, -1} != set()


@given(st.integers(1, 15), NUMBERS)
@settings(max_examples=20)
def test_a_room_that_ends_while_its_request_is_ranked_is_not_in_the_slate(
    worlds, tmp_path_factory, world, seed
):
    release, state = worlds(world), tmp_path_factory.mktemp("state")
    journal, request = Journal(state), ask(release, seed, 5)
    steering = Steering(state=state)
    before = slates(steering, release, request)
    gone = sorted({content for slate in before for content in slate})[::2]
    ids = release.array("text_content_id.npy")

    def end():
        journal.append([{"event": "ended", "content": str(ids[c]), "time": 0} for c in gone])

    after = slates(steering, release, request, between=end)
    assert not {content for slate in after for content in slate} & set(gone)


def losses(release, rows):
    """Events that close four contents, each for a reason of its own, the last with all of its seller's."""
    ids, sellers = release.array("text_content_id.npy"), release.array("text_seller_id.npy")
    down, sold_out, ended, suspended = rows
    return [
        {"event": "taken_down", "content": str(ids[down]), "time": 5},
        {"event": "stock", "content": str(ids[sold_out]), "time": 5, "stock": 0},
        {"event": "ended", "content": str(ids[ended]), "time": 5},
        {"event": "seller_suspended", "seller": str(sellers[suspended]), "time": 5},
    ]


def four_of(release, contents):
    """Four of some contents, the last of a seller that the others are not of."""
    seller = release.array("seller_code.npy")
    last = next(c for c in contents if seller[c] >= 0)
    return [*[c for c in contents if seller[c] != seller[last]][:3], last]


def asked_once(release, market):
    """A request from a market that has seen nothing and is tired of nobody."""
    request = {name: array[:1] for name, array in ask(release, 1, 1).items()}
    request["market_index"][:], request["time"][:] = market, synthetic.END
    request["seen"][:], request["tired_sellers"][:], request["excluded_sellers"][:] = -1, -1, -1
    request["reads"][:] = -1
    return request


def test_the_funnel_says_of_each_content_why_it_may_not_be_shown(worlds, tmp_path):
    release, market = worlds(3), synthetic.MARKETS.index("GB")
    request, seller = asked_once(release, market), release.array("text_seller_id.npy")
    opens, ends = release.array("created_at.npy"), release.array("ended_at.npy")
    stock, sold = release.array("stock.npy"), np.flatnonzero(release.array("available.npy")[market]).tolist()
    down, sold_out, ended, suspended = rows = four_of(
        release, eligible(release, market, synthetic.END, [], [])
    )
    forbidden = next(seller[c] for c in sold if seller[c] not in ("", *seller[rows]))

    def why(content):
        if seller[content] == forbidden:
            return "forbidden by the market's rules"
        if content == down:
            return "taken down"
        if seller[content] == seller[suspended]:
            return "of a suspended seller"
        if content == sold_out or stock[content] == 0:
            return "sold out"
        if content == ended or ends[content] <= synthetic.END:
            return "ended"
        return "not open" if opens[content] > synthetic.END else None

    Journal(tmp_path).append(losses(release, rows))
    steering = Steering(Rules(forbidden_sellers={"GB": (str(forbidden),)}), tmp_path)
    made = answers(steering, release, request, explain=True)
    retrieval = Explanation.of(made["explanation"][0, 0]).stages[2]
    assert retrieval.took == len(sold) == retrieval.kept + sum(retrieval.dropped.values())
    expected = Counter(reason for reason in map(why, sold) if reason)
    assert {reason: count for reason, count in retrieval.dropped.items() if reason in BARRED} == expected
    assert set(expected) >= set(BARRED) - {"not open"}


def test_what_may_no_longer_be_shown_once_it_is_ranked_is_told_with_its_reason(worlds, tmp_path):
    release, journal = worlds(3), Journal(tmp_path)
    request, seller = asked_once(release, 1), release.array("seller_code.npy")
    candidates = [c for c in Retrieval(release)(**request)["candidates"][0].tolist() if c >= 0]
    rows = four_of(release, candidates)
    steering, gone = Steering(state=tmp_path), losses(release, rows)
    made = answers(steering, release, request, lambda: journal.append(gone), explain=True)
    reordering = Explanation.of(made["explanation"][0, 0]).stages[-1]
    assert reordering.took == reordering.kept + sum(reordering.dropped.values())
    meanwhile = {reason: n for reason, n in reordering.dropped.items() if reason.endswith("meanwhile")}
    assert meanwhile == {
        "taken down meanwhile": 1,
        "of a suspended seller meanwhile": sum(seller[c] == seller[rows[3]] for c in candidates),
        "sold out meanwhile": 1,
        "ended meanwhile": 1,
    }


def test_events_that_come_between_two_requests_are_known_to_the_second(worlds, tmp_path):
    release, journal = worlds(3), Journal(tmp_path)
    stage, request = Retrieval(release, Steering(state=tmp_path)), ask(release, 1, 8)
    ids = release.array("text_content_id.npy")
    first = stage(**request)["candidates"]
    gone = int(first[first >= 0][0])
    journal.append([{"event": "ended", "content": str(ids[gone]), "time": 5}])
    assert gone not in stage(**request)["candidates"]
    journal.append([{"event": "started", "content": str(ids[gone]), "time": 6}])
    assert gone in stage(**request)["candidates"]


def test_viewers_order_the_live_channel_from_the_next_request_on(worlds, tmp_path):
    release, journal = worlds(3), Journal(tmp_path)
    stage = Retrieval(release, Steering(state=tmp_path))
    shelf = stage.shelves[1]
    newest_first = live(asked(shelf, time=synthetic.END), 99)[0].tolist()
    newest, *others, oldest = newest_first
    assert others, "rooms of unknown number stand between"
    journal.append(
        {"event": "viewers", "content": str(stage_id(release, shelf.rows[place])), "time": 5, "viewers": many}
        for place, many in ((newest, 7), (oldest, 70))
    )
    stage(**ask(release, 1, 2))
    assert shelf.viewers[[newest, oldest]].tolist() == [7, 70]
    assert np.isnan(np.delete(shelf.viewers, [newest, oldest])).all()
    assert live(asked(shelf, time=synthetic.END), 99)[0].tolist() == [oldest, *others, newest]


def test_a_room_that_has_just_opened_comes_first_where_no_number_is_known(worlds, tmp_path):
    release, journal = worlds(3), Journal(tmp_path)
    stage = Retrieval(release, Steering(state=tmp_path))
    shelf = stage.shelves[1]
    *others, oldest = live(asked(shelf, time=synthetic.END), 99)[0].tolist()
    content = str(stage_id(release, shelf.rows[oldest]))
    journal.append([{"event": "started", "content": content, "time": synthetic.END - 1}])
    stage(**ask(release, 1, 2))
    assert live(asked(shelf, time=synthetic.END), 99)[0].tolist() == [oldest, *others]


@given(SEEDS, NUMBERS)
@settings(max_examples=30)
def test_a_process_that_starts_late_finds_what_one_finds_that_saw_the_events_come(
    worlds, tmp_path_factory, world, seed
):
    release, random, state = worlds(world), np.random.default_rng(seed), tmp_path_factory.mktemp("state")
    seeing, request = Retrieval(release, Steering(state=state)), ask(release, seed, 8)
    request["time"][:] = synthetic.END
    for content in random.choice(release.array("text_content_id.npy"), 6):
        opened = {"event": "started", "content": str(content), "time": int(random.integers(synthetic.END))}
        Journal(state).append([opened])
        seen = seeing(**request)
    for name, array in Retrieval(release, Steering(state=state))(**request).items():
        np.testing.assert_array_equal(array, seen[name], name)


def stage_id(release, row):
    return release.array("text_content_id.npy")[row]


def test_an_empty_state_folder_changes_no_candidate(worlds, tmp_path):
    for world in range(6):
        release = worlds(world)
        request = ask(release, world, 6)
        plain = Retrieval(release)(**request)
        for name, array in Retrieval(release, Steering(state=tmp_path / "none"))(**request).items():
            np.testing.assert_array_equal(array, plain[name], name)


def test_rules_travel_to_a_stage_as_json(worlds):
    from ensemble.stages import build

    release = worlds(3)
    stage = build("retrieval", release, rules=json.dumps({"forbidden_kinds": {"*": ["live"]}}))
    found = stage(**ask(release, 1, 8))["candidates"]
    assert (release.array("text_kind.npy")[found[found >= 0]] != "live").all()
