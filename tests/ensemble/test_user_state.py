"""A user's state is what was stored and what the session adds; the moment is the market's own."""

import datetime
from dataclasses import replace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import Code, RequestError
from ensemble.plan import FILE, Plan
from ensemble.release import Release, ReleaseWriter
from ensemble.stages.user_state import NULL_INTEGER, UserState
from market.profiles import profile
from tests.ensemble import synthetic

LENGTH = synthetic.HISTORY


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return synthetic.Worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def world(worlds):
    return worlds(5)


def ask(stage, user="nobody", market="ID", time=synthetic.START, history=(), exclude=(), shown=(), **more):
    """The stage's tensors of one request."""
    made = stage(
        user_id=np.array([user], object),
        market=np.array([market], object),
        time=np.array([time]),
        history=np.array([list(history)], object).reshape(1, -1),
        exclude=np.array([list(exclude)], object).reshape(1, -1),
        shown=np.array([list(shown)], object).reshape(1, -1),
        **{name: np.array([list(texts)], object).reshape(1, -1) for name, texts in more.items()},
    )
    return {name: array[0] for name, array in made.items()}


def stored(release, row, table="user_history"):
    return [int(place) for place in release.array(f"{table}.npy")[row] if place >= 0]


@given(st.integers(0, 9), st.data())
@settings(max_examples=60)
def test_the_session_follows_the_stored_history_and_the_newest_stay(worlds, seed, data):
    release = worlds(seed)
    users, contents = release.array("user_id.npy").tolist(), release.array("text_content_id.npy").tolist()
    sellers = release.array("text_seller_id.npy").tolist()
    user = data.draw(st.sampled_from([*users, "nobody"]))
    session = data.draw(st.lists(st.sampled_from([*contents, "", "unknown"]), max_size=8))
    exclude = data.draw(st.lists(st.sampled_from([*contents, "", "unknown"]), max_size=8))
    made = ask(UserState(release), user, history=session, exclude=exclude)
    past = stored(release, users.index(user)) if user in users else []
    both = past + [contents.index(content) for content in session if content in contents]
    kept = both[-LENGTH:]
    fill = [""] * (LENGTH - len(kept))
    assert made["raw_hist_content_id"].tolist() == [contents[place] for place in kept] + fill
    known = [sellers[place] for place in kept if sellers[place]]
    assert made["raw_hist_seller_id"].tolist() == known + [""] * (LENGTH - len(known))
    assert made["raw_history_length"] == len(kept)
    assert made["recent"].tolist() == kept + [-1] * (LENGTH - len(kept))
    hidden = {contents.index(content) for content in [*session, *exclude] if content in contents}
    if user in users:
        row, until = users.index(user), release.array("user_tired_contents_until.npy")
        hidden |= set(stored(release, row, "user_seen"))
        tired = zip(release.array("user_tired_contents.npy")[row].tolist(), until[row].tolist())
        hidden |= {content for content, end in tired if content >= 0 and end > synthetic.START}
    assert {place for place in made["seen"].tolist() if place >= 0} == hidden


def test_what_contents_of_a_long_history_lack_is_left_out_and_the_others_keep_their_order(world, tmp_path):
    with ReleaseWriter(tmp_path / "long", name="long") as other:
        other.copy(world)
        other.json(FILE, replace(Plan.of(world), history_length=60).to_json())
    rows = np.random.default_rng(0).integers(0, len(world.array("text_content_id.npy")), 60)
    session, sellers = (
        world.array(f"text_{name}.npy")[rows].tolist() for name in ("content_id", "seller_id")
    )
    made = ask(UserState(Release.open(tmp_path / "long")), history=session)
    known = [seller for seller in sellers if seller]
    assert 20 < len(known) < 60
    assert made["raw_hist_content_id"].tolist() == session
    assert made["raw_hist_seller_id"].tolist() == known + [""] * (60 - len(known))


def test_all_of_a_long_session_counts_as_seen(world):
    contents = world.array("text_content_id.npy").tolist()
    made = ask(UserState(world), history=contents)
    assert set(range(len(contents))) <= set(made["seen"].tolist())


def test_each_exposure_is_passed_on_and_hides_nothing(world):
    contents = world.array("text_content_id.npy").tolist()
    made = ask(UserState(world), shown=[contents[3], "unknown", contents[0], contents[3]])
    assert made["exposed"].tolist() == [3, -1, 0, 3]
    assert (made["seen"] == -1).all()


@pytest.mark.parametrize("row", [0, 1])
def test_a_known_user_has_the_stored_attributes(world, row):
    made = ask(UserState(world), str(world.array("user_id.npy")[row]))
    assert made["raw_language"] == world.array("attribute_language.npy")[row]
    assert made["raw_age"] == world.array("attribute_age.npy")[row]
    assert made["raw_spend"] == world.array("attribute_spend.npy")[row]


@pytest.mark.parametrize("seed", [0, 5])
def test_an_unknown_user_has_nulls_and_no_history(worlds, seed):
    made = ask(UserState(worlds(seed)), "nobody")
    assert made["raw_user_id"] == "nobody"
    assert made["raw_language"] == ""
    assert made["raw_age"] == NULL_INTEGER
    assert made["raw_spend"] == 0
    assert made["raw_history_length"] == 0
    assert (made["raw_hist_content_id"] == "").all()
    assert (made["seen"] == -1).all()


@pytest.mark.parametrize("market", synthetic.MARKETS)
@pytest.mark.parametrize("time", [synthetic.START, synthetic.START + 40_000, 0])
def test_the_hour_is_the_local_one_of_the_market(world, market, time):
    made = ask(UserState(world), market=market, time=time)
    local = datetime.datetime.fromtimestamp(time, ZoneInfo(profile(market).timezone))
    assert made["raw_hour"] == local.hour
    assert made["raw_market"] == market
    assert synthetic.MARKETS[made["market_index"]] == market


def test_mixed_requests_are_answered_row_by_row(world):
    stage = UserState(world)
    users = [*world.array("user_id.npy")[:3], "nobody"]
    markets, times = ["ID", "GB", "BR", "GB"], [synthetic.START + 9_000 * row for row in range(4)]
    together = stage(
        user_id=np.array(users, object),
        market=np.array(markets, object),
        time=np.array(times),
        history=np.full((4, 0), "", object),
        exclude=np.full((4, 0), "", object),
        shown=np.full((4, 0), "", object),
    )
    for row in range(4):
        alone = ask(stage, users[row], markets[row], times[row])
        for name in set(together) - {"clock"}:
            np.testing.assert_array_equal(together[name][row], alone[name], name)


def test_an_unknown_market_is_refused_with_those_that_are_served(world):
    with pytest.raises(RequestError, match=r"unknown market 'FR' at row 0.*BR, GB, ID") as caught:
        ask(UserState(world), market="FR")
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("time", [-1, np.iinfo(np.int64).min, 4_102_444_800, np.iinfo(np.int64).max])
def test_a_time_outside_the_calendar_is_refused(world, time):
    with pytest.raises(RequestError, match="from 1970 to 2099") as caught:
        ask(UserState(world), time=time)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"time": np.array([0, 1, -1])}, "tensor 'time' holds -1 at row 2"),
        ({"market": np.array(["ID", "FR", "GB"], object)}, "unknown market 'FR' at row 1"),
    ],
)
def test_one_wrong_request_beside_others_is_refused_by_its_row(world, wrong, why):
    nothing = np.full((3, 0), "", object)
    usual = {"user_id": np.full(3, "nobody", object), "market": np.full(3, "ID", object)}
    given = {**usual, "time": np.arange(3), **wrong}
    with pytest.raises(RequestError, match=why):
        UserState(world)(**given, history=nothing, exclude=nothing, shown=nothing)


def test_the_last_second_of_the_calendar_is_served(world):
    assert ask(UserState(world), time=4_102_444_799)["raw_hour"] in range(24)


def test_followed_sellers_are_the_users_own_and_tired_ones_rest_in_time(world):
    stage, sellers = UserState(world), world.array("user_tired_sellers.npy")
    until = world.array("user_tired_sellers_until.npy")
    row, place = np.argwhere(sellers >= 0)[0]
    user, end = str(world.array("user_id.npy")[row]), int(until[row, place])
    assert ask(stage, user)["followed"].tolist() == world.array("user_followed.npy")[row].tolist()
    assert ask(stage, user, time=end - 1)["tired_sellers"][place] == sellers[row, place]
    assert ask(stage, user, time=end)["tired_sellers"][place] == -1
    for name in ("followed", "tired_sellers"):
        assert (ask(stage, "nobody")[name] == -1).all()


def test_excluded_sellers_are_found_by_id_and_unknown_ones_are_nobody(world):
    sellers = world.array("seller_ids.npy").tolist()
    made = ask(UserState(world), exclude_sellers=[sellers[2], "unknown", "", sellers[0]])
    assert made["excluded_sellers"].tolist() == [2, -1, -1, 0]
    assert ask(UserState(world))["excluded_sellers"].tolist() == []


@pytest.mark.parametrize(
    ("languages", "speaks", "reads", "text"),
    [
        (["pt-PT", "en"], 1, [1, 0], "pt"),
        (["xx", "en", ""], 0, [-1, 0, -1], "en"),
        (["pt"], 1, [1], "pt"),
        (["POR-pt", "eng"], 1, [1, 0], "pt"),
        (["pt_BR", "en_US.UTF-8"], 1, [1, 0], "pt"),
    ],
)
def test_the_first_known_language_of_a_request_is_the_persons_own(world, languages, speaks, reads, text):
    user = str(world.array("user_id.npy")[np.flatnonzero(world.array("user_language.npy") != speaks)[0]])
    for name in (user, "nobody"):
        made = ask(UserState(world), name, languages=languages)
        assert made["speaks"] == speaks
        assert made["reads"].tolist() == reads
        assert made["raw_language"] == text


def test_languages_that_no_content_is_in_change_nothing(world):
    stage, user = UserState(world), str(world.array("user_id.npy")[0])
    usual, made = ask(stage, user), ask(stage, user, languages=["xx", ""])
    assert made["reads"].tolist() == [-1, -1]
    for name in set(usual) - {"reads", "clock"}:
        np.testing.assert_array_equal(made[name], usual[name], name)


def test_a_season_is_that_of_the_users_latest_event_and_of_now_where_the_session_or_nothing_tells(
    world, tmp_path
):
    users, content = world.array("user_id.npy"), str(world.array("text_content_id.npy")[0])
    with ReleaseWriter(tmp_path / "seasons", name="seasons") as other:
        other.copy(world)
        other.json(FILE, replace(Plan.of(world), season_s=3600).to_json())
        other.array("user_since.npy", synthetic.START - 9 * np.arange(len(users))[::-1])
    stage, now = UserState(Release.open(tmp_path / "seasons")), synthetic.START - 5
    assert ask(stage, str(users[-2]), time=now)["since"] == synthetic.START - 9
    assert ask(stage, str(users[-1]), time=now)["since"] == now, "not after the request"
    assert ask(stage, str(users[-2]), time=now, history=[content])["since"] == now
    assert ask(stage, str(users[-2]), time=now, history=["unknown"])["since"] == synthetic.START - 9
    assert ask(stage, "nobody", time=now)["since"] == now


@pytest.mark.parametrize(
    ("said", "text"), [("pt-BR", "pt-BR"), ("pt_br", "pt-BR"), ("pt-PT", "pt-PT"), ("pt-AO", "pt-PT")]
)
def test_a_dialect_is_the_users_own_where_users_speak_it_and_else_the_first_of_its_language(
    world, tmp_path, said, text
):
    spoken = np.array(["en", "pt-PT", "pt-BR"])
    users = np.arange(len(world.array("user_id.npy"))) % 3
    assert set(users) == {0, 1, 2}
    with ReleaseWriter(tmp_path / "dialects", name="dialects") as other:
        other.copy(world)
        other.array("user_language.npy", users.astype(np.int32))
        other.array("attribute_language.npy", spoken[users])
    stage = UserState(Release.open(tmp_path / "dialects"))
    assert ask(stage, languages=[said])["raw_language"] == text
