"""The local calendar, against days that everyone knows and against the standard library."""

import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.calendar import NO_PAYDAY, PAYDAY_WINDOW_DAYS, CalendarContext, local_context, shopping_dates
from market.profiles import MARKETS, UnknownMarket, profile

moments = st.lists(
    st.tuples(st.sampled_from(sorted(MARKETS)), st.integers(1_000_000_000, 2_000_000_000)),
    min_size=1,
    max_size=20,
)


def at(market: str, year: int, month: int, day: int, hour: int = 12, minute: int = 0) -> CalendarContext:
    """The context of one moment, by the clock on the wall there."""
    moment = datetime.datetime(year, month, day, hour, minute, tzinfo=ZoneInfo(profile(market).timezone))
    return local_context(np.array([market]), np.array([int(moment.timestamp())]))


@settings(max_examples=60)
@given(moments)
def test_hour_and_weekday_are_those_of_the_clock_on_the_wall(rows):
    context = local_context(np.array([m for m, _ in rows]), np.array([t for _, t in rows]))
    for k, (market, moment) in enumerate(rows):
        wall = datetime.datetime.fromtimestamp(moment, ZoneInfo(profile(market).timezone))
        assert (context.hour[k], context.weekday[k]) == (wall.hour, wall.weekday())
        assert context.is_weekend[k] == (wall.weekday() in profile(market).weekend)


@settings(max_examples=60)
@given(moments)
def test_a_batch_says_what_its_rows_say_alone(rows):
    markets, times = np.array([m for m, _ in rows]), np.array([t for _, t in rows])
    batch = local_context(markets, times)
    for k in range(len(rows)):
        alone = local_context(markets[k : k + 1], times[k : k + 1])
        for name, values in vars(alone).items():
            assert getattr(batch, name)[k] == values[0], name
            assert getattr(batch, name).dtype == values.dtype


@settings(max_examples=60)
@given(moments)
def test_the_payday_window_opens_on_the_day_itself(rows):
    markets, times = np.array([m for m, _ in rows]), np.array([t for _, t in rows])
    context = local_context(markets, times)
    on_the_day = context.days_to_payday == 0
    assert context.is_payday_window[on_the_day].all()
    unpaid = np.isin(markets, [code for code, market in MARKETS.items() if not market.pay_days])
    assert ((context.days_to_payday == NO_PAYDAY) == unpaid)[~on_the_day].all()
    assert ((context.days_to_payday >= 0) & (context.days_to_payday <= NO_PAYDAY)).all()


def test_one_moment_is_two_days_in_two_markets():
    instant = int(datetime.datetime(2025, 8, 16, 20, tzinfo=datetime.timezone.utc).timestamp())
    context = local_context(np.array(["ID", "BR"]), np.array([instant, instant]))
    assert context.hour.tolist() == [3, 17]
    assert context.weekday.tolist() == [6, 5]
    assert context.is_holiday.tolist() == [1, 0]  # 17 August is Indonesia's Independence Day


def test_clocks_are_put_forward_in_london():
    last_sunday_of_march = [at("GB", 2025, 3, 30, hour).hour[0] for hour in (0, 2)]
    assert last_sunday_of_march == [0, 2]
    utc = int(datetime.datetime(2025, 3, 30, 0, 59, tzinfo=datetime.timezone.utc).timestamp())
    assert local_context(np.array(["GB", "GB"]), np.array([utc, utc + 60])).hour.tolist() == [0, 2]


def test_india_is_half_an_hour_off():
    utc = int(datetime.datetime(2025, 1, 1, 18, 29, tzinfo=datetime.timezone.utc).timestamp())
    assert local_context(np.array(["IN", "IN"]), np.array([utc, utc + 60])).hour.tolist() == [23, 0]


@pytest.mark.parametrize(
    ("market", "date"),
    [
        ("ID", (2025, 3, 31)),  # Eid al-Fitr
        ("MY", (2025, 3, 31)),
        ("VN", (2025, 1, 29)),  # Tết
        ("SG", (2025, 1, 29)),
        ("TH", (2025, 4, 13)),  # Songkran
        ("PH", (2025, 12, 25)),
        ("GB", (2025, 12, 25)),
        ("DE", (2025, 10, 3)),
        ("FR", (2025, 7, 14)),
        ("MX", (2025, 9, 16)),
        ("BR", (2025, 9, 7)),
        ("CO", (2025, 7, 20)),
        ("US", (2025, 7, 4)),
        ("IN", (2025, 8, 15)),
    ],
)
def test_a_day_that_everyone_there_has_off_is_a_holiday(market, date):
    assert at(market, *date).is_holiday[0] == 1


def test_an_ordinary_day_is_none():
    context = at("ID", 2025, 7, 9)
    assert (context.is_holiday[0], context.is_shopping_day[0], context.is_payday_window[0]) == (0, 0, 0)
    assert (context.is_weekend[0], context.days_to_payday[0]) == (0, 16)


@pytest.mark.parametrize(
    ("market", "date", "expected"),
    [
        ("ID", (2025, 9, 9), 1),
        ("ID", (2025, 12, 12), 1),
        ("ID", (2025, 12, 13), 0),
        ("GB", (2025, 9, 9), 0),
        ("GB", (2024, 11, 29), 1),  # Black Friday
        ("GB", (2025, 11, 28), 1),
        ("GB", (2025, 11, 21), 0),
        ("US", (2024, 12, 2), 1),  # Cyber Monday falls into December
        ("MX", (2024, 11, 18), 1),  # El Buen Fin ends on the third Monday
        ("MX", (2024, 11, 19), 0),
        ("BR", (2025, 8, 10), 1),  # Dia dos Pais, the second Sunday of August
    ],
)
def test_campaigns_fall_on_their_days(market, date, expected):
    assert at(market, *date).is_shopping_day[0] == expected


def test_a_campaign_lasts_until_midnight_there():
    assert at("ID", 2025, 11, 11, 23, 59).is_shopping_day[0] == 1
    assert at("ID", 2025, 11, 12, 0, 0).is_shopping_day[0] == 0


@pytest.mark.parametrize("year", range(2015, 2040))
def test_black_friday_is_the_day_after_the_fourth_thursday(year):
    thursdays = [d for d in range(1, 31) if datetime.date(year, 11, d).weekday() == 3]
    assert datetime.date(year, 11, thursdays[3]) + datetime.timedelta(1) in shopping_dates(
        profile("FR"), year
    )


@pytest.mark.parametrize(
    ("month", "day", "days", "window"),
    [(2, 28, 0, 1), (3, 2, 13, 1), (3, 3, 12, 0), (4, 30, 0, 1), (5, 30, 1, 0), (5, 31, 0, 1), (5, 15, 0, 1)],
)
def test_the_31st_is_the_last_day_of_any_month(month, day, days, window):
    context = at("DE", 2025, month, day)  # paid on the 15th and the last day
    assert (context.days_to_payday[0], context.is_payday_window[0]) == (days, window)
    assert PAYDAY_WINDOW_DAYS == 3


def test_the_unknown_market_has_plain_days():
    context = at("XX", 2025, 12, 25)
    assert (context.is_holiday[0], context.is_shopping_day[0], context.is_payday_window[0]) == (0, 0, 0)
    assert context.days_to_payday[0] == NO_PAYDAY


def test_an_empty_batch_has_an_empty_calendar():
    context = local_context(np.array([], dtype=str), np.array([], dtype=np.int64))
    assert all(len(values) == 0 for values in vars(context).values())


def test_objects_serve_as_codes():
    codes = np.array(["ID", "GB"], dtype=object)
    assert local_context(codes, np.array([0, 0])).hour.tolist() == [7, 1]  # London was an hour ahead in 1970


def test_an_unknown_market_is_named():
    with pytest.raises(UnknownMarket, match="'QQ'"):
        local_context(np.array(["ID", "QQ"]), np.array([0, 0]))


@pytest.mark.parametrize("times", [[1_700_000_000_000], [-1]])
def test_times_that_are_no_seconds_are_refused(times):
    with pytest.raises(ValueError, match="milliseconds"):
        local_context(np.array(["ID"]), np.array(times))


@pytest.mark.parametrize(("markets", "times"), [(["ID"], [0, 1]), ([["ID"]], [[0]]), (["ID"], [0.5])])
def test_arrays_that_do_not_match_are_refused(markets, times):
    with pytest.raises(ValueError, match="must be"):
        local_context(np.array(markets), np.array(times))
