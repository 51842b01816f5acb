"""The simulated world keeps its promises: contract, exact propensities, known truth, something to learn."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from market.profiles import profile
from market.tables import Tables, validate
from market.world import World, WorldConfig
from market.world.behaviour import in_stock
from market.world.config import DAY
from market.world.policy import LoggingPolicy
from market.world.population import draw_population

SMALL = WorldConfig(
    markets=("ID", "VN", "GB"), users=400, contents=800, sellers=40, impressions=18_000, days=3, slate=6
)
CROWD = replace(SMALL, users=6_000)


@pytest.fixture(scope="module")
def logged() -> tuple[World, pd.DataFrame]:
    """A world after its log, and the log."""
    world = World(SMALL)
    return world, pd.concat(world.simulate(), ignore_index=True)


@pytest.fixture
def crowd() -> World:
    return World(CROWD)


def _noon(config: WorldConfig) -> int:
    return config.begin + DAY + 12 * 3600


def _home_slates(world: World, users: np.ndarray, time: int, length: int) -> np.ndarray:
    """Random slates of contents that are on in each user's market."""
    rng = np.random.default_rng(0)
    market = world.users()["market"].to_numpy()[users]
    slates = np.empty((len(users), length), np.int64)
    for code in world.config.markets:
        on = np.flatnonzero(world.eligible(code, time))
        rows = np.flatnonzero(market == code)
        slates[rows] = rng.permuted(np.tile(on, (len(rows), 1)), axis=1)[:, :length]
    return slates


def test_equal_configurations_give_equal_worlds_and_logs(logged):
    world, log = logged
    again = World(SMALL)
    for table in ("users", "contents", "sellers"):
        pd.testing.assert_frame_equal(getattr(world, table)(), getattr(again, table)())
    pd.testing.assert_frame_equal(log, pd.concat(again.simulate(), ignore_index=True))


def test_images_show_what_contents_are_about_and_change_nothing_else(logged):
    world, log = logged
    seen = World(replace(SMALL, images=True))
    contents = seen.contents()
    pd.testing.assert_frame_equal(contents.drop(columns="v_image"), world.contents())
    pd.testing.assert_frame_equal(pd.concat(seen.simulate(), ignore_index=True), log)
    images, taste = np.stack(contents["v_image"]), draw_population(SMALL).contents.vector
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    # Of contents of one topic, too, an image tells which are alike; but it is no copy of the truth.
    topic = contents["x_topic"].to_numpy()
    alike = (topic[:, None] == topic) & ~np.eye(len(topic), dtype=bool)
    assert (images @ images.T)[alike].mean() > (images @ images.T).mean() + 0.3
    assert 0.1 < np.corrcoef((images @ images.T)[alike], (taste @ taste.T)[alike])[0, 1] < 0.9


def test_simulating_twice_gives_the_same_log(logged):
    world, log = logged
    pd.testing.assert_frame_equal(log, pd.concat(world.simulate(), ignore_index=True))


def test_another_seed_gives_another_world(logged):
    world, _ = logged
    other = World(replace(SMALL, seed=8))
    assert (other.contents()["category"] != world.contents()["category"]).mean() > 0.5


def test_the_tables_keep_the_contract(logged):
    world, log = logged
    tables = Tables("world", "impressions", "time", world.users(), world.contents(), log, world.sellers())
    checked = validate(tables)
    pd.testing.assert_frame_equal(checked.impressions[log.columns], log)


def test_the_log_is_as_long_as_configured_and_in_order_of_time(logged):
    _, log = logged
    assert len(log) == SMALL.impressions
    assert log["time"].is_monotonic_increasing
    assert log["time"].between(SMALL.begin, SMALL.end - 1).all()
    requests = log.groupby("request_id")
    assert requests["user_id"].nunique().max() == 1
    assert (requests["position"].apply(list).map(tuple) == tuple(range(SMALL.slate))).all()
    assert requests["content_id"].nunique().min() == SMALL.slate


def test_only_living_contents_of_the_market_are_shown_to_registered_users(logged):
    world, log = logged
    shown = log.merge(world.contents(), on="content_id").merge(
        world.users(), on="user_id", suffixes=("", "_user")
    )
    assert (shown["created_at"] <= shown["time"]).all()
    assert ((shown["time"] < shown["ended_at"]) | shown["ended_at"].isna()).all()
    assert (shown["registered_at"] <= shown["time"]).all()
    assert (shown["market"] == shown["market_user"]).all()
    assert all(market in markets for market, markets in zip(shown["market"], shown["markets"]))
    assert set(shown["kind"]) == {"video", "live", "product"}


def test_the_funnel_is_nested(logged):
    world, log = logged
    assert (log["cart"] <= log["click"]).all()
    assert (log["order"] <= log["cart"]).all()
    assert (log["refund"] <= log["order"]).all()
    assert not (log["negative"] & log["click"]).any()
    assert (log.loc[log["click"] == 1, "watch_s"] > 0).all()
    ordered = log[log["order"] == 1].merge(world.contents(), on="content_id")
    rate = ordered["currency"].map({profile(c).currency: profile(c).usd_per_unit for c in SMALL.markets})
    assert len(ordered) > 20
    np.testing.assert_allclose(ordered["value"], ordered["price"] * rate, rtol=1e-5)
    assert (log.loc[log["order"] == 0, "value"] == 0).all()


def test_base_rates_are_those_of_a_shopping_feed(logged):
    _, log = logged
    assert 0.04 < log["click"].mean() < 0.13
    assert 0.007 < log["cart"].mean() < 0.03
    assert 0.003 < log["order"].mean() < 0.013
    assert 0.004 < log["negative"].mean() < 0.02
    assert 3 < log["watch_s"].median() < 10
    by_user = log["user_id"].value_counts()
    assert by_user.head(len(by_user) // 10).sum() > 0.3 * len(log)  # activity is heavy-tailed


def _draws(world: World, times: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Slates and propensities of the logging policy for user 0 at times within a block."""
    policy = LoggingPolicy(draw_population(world.config), world.config.slate, np.random.default_rng(3))
    in_stock_all = np.ones(world.config.contents, bool)
    return policy.draw(np.zeros(len(times), np.int64), times, start, end, in_stock_all)


def test_logged_propensities_match_empirical_frequencies():
    world = World(replace(SMALL, contents=120))
    noon, draws = _noon(SMALL), 40_000
    slates, propensity = _draws(world, np.full(draws, noon), noon - 3600, noon + 3600)
    first = pd.Series(propensity[:, 0]).groupby(slates[:, 0]).agg(["first", "nunique", "size"])
    assert (first["nunique"] == 1).all()
    assert first["first"].sum() == pytest.approx(1, abs=1e-5)
    expected = first["first"] / first["first"].sum() * draws
    assert chisquare(first["size"], expected).pvalue > 1e-3
    # Further down, each propensity is that of Plackett-Luce ...
    q = first["first"].reindex(range(world.config.contents), fill_value=0.0).to_numpy(np.float64)
    above = np.cumsum(q[slates], axis=1) - q[slates]
    np.testing.assert_allclose(propensity, q[slates] / (1 - above), rtol=1e-4)
    # ... and contents appear as often as it says: 1 / propensity counts the draws in which they could appear.
    for position in (1, 5):
        rows = np.arange(draws)
        weight = np.zeros((draws, world.config.contents), np.float32)
        weight[rows, slates[:, position]] = 1 / propensity[:, position]
        possible = np.ones_like(weight)
        np.put_along_axis(possible, slates[:, :position], 0, axis=1)
        off = weight - possible
        z = off.sum(axis=0) / np.sqrt(np.square(off).sum(axis=0))
        assert np.abs(z[q > 0]).max() < 4.5


def test_propensities_follow_rooms_that_open_and_end_within_a_block():
    world = World(SMALL)
    start, end = _noon(SMALL), _noon(SMALL) + 4 * 3600
    times = np.sort(np.random.default_rng(1).integers(start, end, 40_000))
    _, propensity = _draws(world, times, start, end)
    contents = world.contents()
    market = world.users()["market"][0]
    sold = contents["markets"].map(lambda markets: market in markets)
    openings = contents["created_at"][sold].between(start + 1, end - 1)
    endings = contents["ended_at"][sold].between(start + 1, end - 1)
    assert openings.sum() > 2
    assert endings.sum() > 2
    created, ended = (
        contents["created_at"][sold].to_numpy(),
        contents["ended_at"][sold].fillna(np.inf).to_numpy(),
    )
    for block in np.array_split(np.arange(len(times)), 4):
        on = (created <= times[block, None]) & (times[block, None] < ended)
        for position in (0, 3):
            # The mean of 1 / propensity is the number of contents that could stand there.
            off = 1 / propensity[block, position] - (on.sum(axis=1) - position)
            assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(block))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1_000),
    contents=st.integers(2, 40),
    users=st.integers(2, 30),
    slate=st.integers(1, 12),
    days=st.integers(1, 3),
)
def test_any_world_logs_slates_without_repetition_and_with_probabilities(seed, contents, users, slate, days):
    config = WorldConfig(
        ("ID", "GB"), users, contents, sellers=2, impressions=240, days=days, slate=slate, seed=seed
    )
    log = pd.concat(World(config).simulate(), ignore_index=True)
    assert not log.duplicated(["request_id", "content_id"]).any()
    assert log["propensity"].between(0, 1, inclusive="right").all()
    # Where everything is sold out a request has no slate.
    assert log["request_id"].nunique() == 240 // slate or log["order"].any()
    last = log.groupby("request_id")["position"].agg(["max", "size"])
    assert (last["max"] + 1 == last["size"]).all()


def test_outcomes_are_drawn_from_the_truth(crowd):
    noon = _noon(CROWD)
    users = np.arange(CROWD.users)
    times = np.full(len(users), noon)
    slates = _home_slates(crowd, users, noon, 6)
    truth = crowd.expected_value(users, slates, times, slate=True)
    drawn = crowd.step(users, slates, times)
    for name in ("click", "cart", "order", "refund", "negative"):
        p = getattr(truth, name).astype(np.float64)
        z = (getattr(drawn, name).sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
        assert abs(z) < 4, name
    for name in ("watch_s", "value"):
        off = getattr(drawn, name).astype(np.float64) - getattr(truth, name)
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size), name
    assert {getattr(truth, field.name).dtype for field in fields(truth)} == {np.dtype(np.float32)}
    # Row by row, not only in the sum.
    top = truth.click > np.quantile(truth.click, 0.9)
    assert drawn.click[top].mean() == pytest.approx(truth.click[top].mean(), rel=0.1)


def test_outcomes_stay_with_their_rows_whatever_the_order_of_time(crowd):
    users = np.arange(200)
    slates = _home_slates(crowd, users, _noon(CROWD), 6)
    times = _noon(CROWD) + np.random.default_rng(2).permutation(200)
    drawn = crowd.step(users, slates, times)
    crowd.reset()
    in_time = np.argsort(times)
    sorted_ = crowd.step(users[in_time], slates[in_time], times[in_time])
    np.testing.assert_array_equal(drawn.watch_s[in_time], sorted_.watch_s)


def test_a_lower_position_is_examined_less(crowd):
    noon = _noon(CROWD)
    content = _home_slates(crowd, np.array([0]), noon, 1)[0, 0]
    slates = np.full((2, 6), -1)
    slates[0, 0] = slates[1, 5] = content
    truth = crowd.expected_value(np.zeros(2, int), slates, np.full(2, noon), slate=True)
    assert truth.click[1, 5] == pytest.approx(truth.click[0, 0] * 6**-0.2, rel=1e-5)
    assert truth.watch_s[1, 5] < truth.watch_s[0, 0]


def test_repetition_tires_and_time_heals(crowd):
    noon, user = _noon(CROWD), np.array([0])
    content = _home_slates(crowd, user, noon, 1)
    category = crowd.contents()["category"].to_numpy()
    same = np.flatnonzero(
        (category == category[content[0, 0]]) & crowd.eligible(crowd.users()["market"][0], noon)
    )[:6]
    fresh = crowd.expected_value(user, content, np.array([noon]))
    crowd.step(user, same[None], np.array([noon]))
    tired = crowd.expected_value(user, content, np.array([noon + 60]))
    rested = crowd.expected_value(user, content, np.array([noon + DAY]))
    other = crowd.expected_value(np.array([1]), content, np.array([noon + 60]))
    assert tired.click[0, 0] < 0.9 * fresh.click[0, 0]
    assert tired.negative[0, 0] > fresh.negative[0, 0]
    assert rested.click[0, 0] > tired.click[0, 0]
    crowd.reset()
    assert crowd.expected_value(np.array([1]), content, np.array([noon + 60])).click == other.click


def test_a_batch_in_which_a_user_returns_tires_as_much_as_single_steps(crowd):
    noon = _noon(CROWD)
    users = np.array([0, 1, 0, 0])
    times = noon + np.array([0, 5, 60, 120])
    slates = _home_slates(crowd, users, noon, 6)
    crowd.step(users, slates, times)
    probe = slates[:1]
    together = crowd.expected_value(users[:1], probe, np.array([noon + 180]))
    crowd.reset()
    for row in range(4):
        crowd.step(users[row : row + 1], slates[row : row + 1], times[row : row + 1])
    apart = crowd.expected_value(users[:1], probe, np.array([noon + 180]))
    np.testing.assert_array_equal(together.click, apart.click)


def test_what_is_not_on_yields_nothing(crowd):
    noon = _noon(CROWD)
    contents, market = crowd.contents(), crowd.users()["market"][0]
    here = contents["markets"].map(lambda markets: market in markets)
    elsewhere = np.flatnonzero(~here)[0]
    ended = np.flatnonzero(here & (contents["ended_at"] <= noon))[0]
    unborn = np.flatnonzero(here & (contents["created_at"] > noon))[0]
    slates = np.tile([-1, elsewhere, ended, unborn], (2_000, 1))
    users, times = np.zeros(2_000, int), np.full(2_000, noon)
    drawn, truth = crowd.step(users, slates, times), crowd.expected_value(users, slates, times)
    for field in fields(drawn):
        assert not getattr(drawn, field.name).any()
        assert not getattr(truth, field.name).any()


def test_a_room_is_eligible_from_its_opening_to_its_end_alone(crowd):
    contents = crowd.contents()
    room = contents[contents["kind"] == "live"].iloc[0]
    market, opened, ended = room["markets"][0], room["created_at"], int(room["ended_at"])
    on = [crowd.eligible(market, time)[room.name] for time in (opened - 1, opened, ended - 1, ended)]
    assert on == [False, True, True, False]


def test_stock_sells_out_and_no_further(crowd):
    noon = _noon(CROWD)
    market = CROWD.markets[0]
    users = np.flatnonzero(crowd.users()["market"] == market)
    stock = crowd.contents()["stock"].to_numpy()
    on = np.flatnonzero(crowd.eligible(market, noon))
    content = on[np.argmin(stock[on])]
    sold, hour = 0, 0
    while crowd.eligible(market, noon)[content] and hour < 50:
        drawn = crowd.step(users, np.full((len(users), 1), content), np.full(len(users), noon + hour * 3600))
        sold += int(drawn.order.sum())
        hour += 1
    assert sold == stock[content]
    assert not crowd.eligible(market, noon)[content]
    crowd.reset()
    assert crowd.eligible(market, noon)[content]


@given(data=st.data(), rows=st.integers(1, 8), columns=st.integers(1, 4))
def test_orders_never_exceed_stock_and_go_to_the_first(data, rows, columns):
    cells = rows * columns
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=cells, max_size=cells))).reshape(
        rows, columns
    )
    numbers = st.lists(st.integers(0, 3), min_size=cells, max_size=cells)
    content = np.array(data.draw(numbers)).reshape(rows, columns)
    stock = np.array(data.draw(st.lists(st.integers(0, 4), min_size=4, max_size=4)))
    served = in_stock(wanted, content, stock)
    left = stock.copy()
    for cell in range(cells):
        row, column = divmod(cell, columns)
        first_come = wanted[row, column] and left[content[row, column]] > 0
        assert served[row, column] == first_come
        left[content[row, column]] -= first_come


def test_neighbours_resemble_each_other():
    markets = ("ID", "VN", "MY", "GB", "DE", "FR", "BR", "MX", "CO")
    region = np.arange(len(markets)) // 3
    near, far = [], []
    for seed in range(5):
        culture = draw_population(WorldConfig(markets, 90, 90, 90, impressions=100, seed=seed)).culture
        likeness = np.corrcoef(culture.category - culture.category.mean(axis=0))
        pairs = np.triu_indices(len(markets), 1)
        same = region[pairs[0]] == region[pairs[1]]
        near.append(likeness[pairs][same].mean())
        far.append(likeness[pairs][~same].mean())
    assert np.mean(near) > np.mean(far) + 0.4


def test_past_clicks_of_a_user_foretell_the_next_ones(logged):
    world, log = logged
    log = log.merge(world.contents()[["content_id", "x_topic", "category"]], on="content_id")
    early = log["time"] < SMALL.begin + 2 * DAY
    late = log[~early]
    lift = {}
    for attribute in ("x_topic", "category"):
        liked = log[early & (log["click"] == 1)][["user_id", attribute]].drop_duplicates()
        known = late.merge(liked, on=["user_id", attribute], how="left", indicator=True)["_merge"] == "both"
        clicks = late["click"].to_numpy()
        lift[attribute] = clicks[known].mean() / clicks[~known].mean()
    assert lift["category"] > 1.5
    assert lift["x_topic"] > lift["category"]


def test_an_oracle_is_worth_far_more_than_popularity_in_the_market(logged):
    world, log = logged
    users, contents = world.users(), world.contents()
    time = SMALL.end - 6 * 3600
    content = pd.Index(contents["content_id"]).get_indexer(log["content_id"])
    worth = {"random": 0.0, "popular": 0.0, "oracle": 0.0}
    rng = np.random.default_rng(0)
    for code in SMALL.markets:
        user = np.flatnonzero(users["market"] == code)
        on = np.flatnonzero(world.eligible(code, time))
        here = (log["market"] == code).to_numpy()
        clicks = np.bincount(content[here], log["click"][here], minlength=SMALL.contents)
        shown = np.bincount(content[here], minlength=SMALL.contents)
        popularity = (clicks + 1) / (shown + 15)
        times = np.full(len(user), time)
        each = world.expected_value(user, np.tile(on, (len(user), 1)), times).value
        scores = {
            "random": rng.random(each.shape),
            "popular": np.tile(popularity[on], (len(user), 1)),
            "oracle": each,
        }
        for name, score in scores.items():
            slates = on[np.argsort(-score, axis=1)[:, : SMALL.slate]]
            worth[name] += world.expected_value(user, slates, times, slate=True).value.sum()
    assert worth["popular"] > 1.2 * worth["random"]
    assert worth["oracle"] > 2 * worth["popular"]


def test_a_world_is_written_as_a_data_set(tmp_path):
    seen = []
    dataset = World(SMALL).write(tmp_path / "world", progress=seen.append)
    assert (dataset.name, dataset.feedback, dataset.split) == ("world", "impressions", "time")
    assert len(dataset.impressions(["user_id"])) == SMALL.impressions
    assert seen == sorted(seen)
    assert seen[-1] == SMALL.impressions
    assert len(seen) == len(dataset.impression_files) == SMALL.days * 6


def test_rooms_of_a_data_set_say_who_is_there_what_they_show_and_what_is_left(tmp_path):
    world = World(SMALL)
    dataset = world.write(tmp_path / "world")
    said, contents = dataset.moments(), world.contents().set_index("content_id")
    assert said["time"].is_monotonic_increasing
    assert said["time"].max() < SMALL.end
    told = said[said["viewers"].notna() | said["showing"].notna()]
    rooms = contents.loc[told["content_id"]]
    assert set(rooms["kind"]) == {"live"}
    open_ = (rooms["created_at"].to_numpy() <= told["time"]) & (told["time"] < rooms["ended_at"].to_numpy())
    assert open_.all()
    shown = said[said["showing"].notna()]
    cards = contents.loc[shown["showing"]]
    assert set(cards["kind"]) == {"product"}
    assert (cards["seller_id"].to_numpy() == contents.loc[shown["content_id"], "seller_id"].to_numpy()).all()
    left = said[said["stock"].notna()]
    orders = dataset.impressions(["content_id", "order"]).groupby("content_id")["order"].sum()
    assert len(left) == orders.sum() > 20
    last = left.groupby("content_id")["stock"].last()
    assert (last == contents.loc[last.index, "stock"] - orders[last.index]).all()


def test_a_room_is_liked_better_while_it_is_hot_and_its_people_tell(crowd):
    truth = draw_population(CROWD)
    rooms = np.flatnonzero(crowd.contents()["kind"] == "live")
    opened, ended = truth.contents.created_at[rooms], truth.contents.ended_at[rooms]
    time = np.random.default_rng(0).integers(opened, ended)
    heat = truth.rooms.heat(rooms, time)
    assert abs(heat.mean()) < 0.1
    home = truth.contents.markets[:, rooms].argmax(axis=0)
    user = np.array([np.flatnonzero(truth.users.market == market)[0] for market in home])
    click = crowd.expected_value(user, rooms[:, None], time).click[:, 0]
    hot = heat > np.median(heat)
    assert np.log(click[hot]).mean() > np.log(click[~hot]).mean() + 0.5
    said = truth.rooms.statements(rooms, np.random.default_rng(1))
    counted = said[said["viewers"].notna()]
    now = truth.rooms.heat(counted["content"].to_numpy(), counted["time"].to_numpy())
    usual = counted.groupby("content")["viewers"].transform("mean")
    assert np.corrcoef(now, np.log1p(counted["viewers"]) - np.log1p(usual))[0, 1] > 0.6


def test_people_take_to_a_room_for_the_product_that_it_shows(crowd):
    truth = draw_population(CROWD)
    selling = np.flatnonzero((crowd.contents()["kind"] == "live") & (truth.rooms.shown > 1))[0]
    opened = truth.contents.created_at[selling]
    first, second = truth.rooms.products[selling, :2]
    turn = truth.rooms.turn_s[selling]
    assert truth.rooms.showing(np.full(2, selling), opened + np.array([0, turn])).tolist() == [first, second]
    home = truth.contents.markets[:, selling].argmax()
    fans = np.flatnonzero(truth.users.market == home)
    taste = {
        c: (truth.users.interests[fans] @ truth.contents.vector[c]).max(axis=1) for c in (selling, first)
    }
    likes = taste[first] > np.maximum(taste[selling], 0)
    assert likes.any()
    with_it, without = (
        crowd.expected_value(fans, np.full((len(fans), 1), selling), np.full(len(fans), opened)).click[:, 0]
        for crowd in (crowd, _silent(crowd, selling))
    )
    assert (with_it[likes] > without[likes]).all()
    np.testing.assert_allclose(with_it[~likes], without[~likes], rtol=1e-5)


def _silent(world: World, room: int) -> World:
    """The same world, but a room shows nothing."""
    made = World(world.config)
    made._truth.rooms.products[room] = -1
    return made


def test_last_pieces_sell(crowd):
    card = np.flatnonzero(crowd.contents()["kind"] == "product")[:1]
    home = draw_population(CROWD).contents.markets[:, card[0]].argmax()
    user = np.flatnonzero(crowd.users()["market"] == CROWD.markets[home])[:5]
    asked = user, np.tile(card, (5, 1)), np.full(5, _noon(CROWD))
    crowd._stock[card] = 500
    plenty = crowd.expected_value(*asked)
    crowd._stock[card] = 2
    few = crowd.expected_value(*asked)
    assert (few.cart > plenty.cart).all()
    np.testing.assert_array_equal(few.click, plenty.click)


def test_what_is_sold_out_is_expected_to_be_clicked_and_put_into_carts_but_not_ordered(crowd):
    noon, users = _noon(CROWD), np.arange(50)
    asked = users, _home_slates(crowd, users, noon, 6), np.full(50, noon)
    crowd._stock[:] = 500
    plenty = crowd.expected_value(*asked)
    crowd._stock[:] = 0
    none = crowd.expected_value(*asked)
    assert plenty.order.all()
    for outcome in ("order", "value", "refund"):
        assert not getattr(none, outcome).any(), outcome
    for outcome in ("click", "cart", "watch_s", "negative"):
        np.testing.assert_array_equal(getattr(none, outcome), getattr(plenty, outcome), outcome)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"markets": ()}, "markets must be a tuple"),
        ({"markets": "ID"}, "markets must be a tuple"),
        ({"markets": ("ID", "ID")}, "once"),
        ({"markets": ("ID", "Atlantis")}, "Atlantis"),
        ({"users": 2}, "users must be a whole number of at least 3, got 2"),
        ({"days": 0}, "days"),
        ({"days": 40_000}, "days must be at most 3,650, got 40000"),
        ({"slate": 1.5}, "slate"),
        ({"impressions": 5}, r"one slate \(6\)"),
        ({"start": "02.03.2026"}, "date such as '2026-03-02'"),
        ({"start": "1970-01-01"}, "between 2000 and 2089"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(change, text):
    with pytest.raises(ValueError, match=text):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("users", "slates", "times", "text"),
    [
        ([0], [[0, CROWD.contents]], [0], r"content indices must lie in \[-1, 800\)"),
        ([-1], [[0]], [0], "user indices"),
        ([0.5], [[0]], [0], "whole numbers"),
        ([0, 1], [[0]], [0, 0], r"contents \[B, S\]"),
    ],
)
def test_wrong_indices_are_refused(crowd, users, slates, times, text):
    with pytest.raises(ValueError, match=text):
        crowd.step(np.array(users), np.array(slates), np.array(times))


def test_an_unknown_market_is_refused(crowd):
    with pytest.raises(ValueError, match="'BR' is not in this world; it has ID, VN, GB"):
        crowd.eligible("BR", CROWD.begin)
