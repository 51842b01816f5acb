"""Profiles say only what is so: real codes, zones, currencies and dates."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from zoneinfo import ZoneInfo

import holidays
import numpy as np
import pytest

from market.calendar import local_context
from market.profiles import (
    COUNTRIES_FILE,
    MARKETS,
    REGIONS,
    WORLD,
    Market,
    UnknownMarket,
    is_market,
    profile,
    undeclared,
)
from tests.market import cldr

EVERY = pytest.mark.parametrize("market", MARKETS.values(), ids=MARKETS)


@EVERY
def test_a_profile_is_filed_under_its_code_in_a_known_region(market: Market):
    assert profile(market.code) is market
    assert market.region in REGIONS


@EVERY
def test_the_time_zone_exists(market: Market):
    assert ZoneInfo(market.timezone)


@EVERY
def test_languages_and_currency_have_the_form_of_their_standards(market: Market):
    assert market.languages
    assert len(set(market.languages)) == len(market.languages)
    assert all(re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", language) for language in market.languages)
    assert re.fullmatch(r"[A-Z]{3}", market.currency)


def test_a_profile_may_name_its_languages_by_any_of_their_codes():
    other = replace(MARKETS["PH"], languages=("tl", "EN", "fil"))
    assert other.languages == ("fil", "en")


@EVERY
def test_the_price_level_is_that_of_a_real_country(market: Market):
    # What goods for one international dollar cost in US dollars: from about a quarter to a bit above one.
    assert 0.2 < market.usd_per_unit / market.purchasing_power < 1.3


def test_countries_of_one_currency_share_its_rate():
    rates = {(market.currency, market.usd_per_unit) for market in MARKETS.values()}
    assert len({currency for currency, _ in rates}) == len(rates)


@EVERY
def test_declared_days_are_days_of_a_calendar(market: Market):
    assert all(0 <= day <= 6 for day in market.weekend)
    assert all(1 <= day <= 31 for day in market.pay_days)
    for campaign in market.shopping_days:
        assert 1 <= campaign.month <= 12
        assert 1 <= campaign.day <= 31
        assert campaign.weekday is None or 0 <= campaign.weekday <= 6
        assert campaign.days >= 1


@pytest.mark.parametrize("market", [m for m in MARKETS.values() if m is not WORLD], ids=lambda m: m.code)
def test_the_country_has_public_holidays(market: Market):
    assert market.code == market.country
    assert len(holidays.country_holidays(market.country, years=2025)) >= 5


def test_the_unknown_market_has_no_calendar_and_no_conversion():
    assert (WORLD.timezone, WORLD.country, WORLD.pay_days, WORLD.shopping_days) == ("UTC", "", (), ())
    assert WORLD.usd_per_unit == WORLD.purchasing_power == 1


def test_any_other_country_is_a_market_with_its_languages_clock_weekend_and_holidays():
    assert profile("NL") == Market(
        "NL", "Netherlands", "europe", "NL", ("nl", "en"), "USD", 1.0, 1.0, "Europe/Amsterdam"
    )
    assert profile("IL").weekend == (4, 5)
    assert is_market("NL")
    assert not any(is_market(code) for code in ("nl", "UK", "", "Netherlands", None, 31))
    # King's Day and the day after it begin two hours before they do in UTC.
    moments = np.array(["2026-04-26T22", "2026-04-27T22"], "datetime64[s]").astype(np.int64)
    context = local_context(np.array(["NL", "NL"]), moments)
    assert (context.is_holiday.tolist(), context.hour.tolist()) == ([1, 0], [0, 0])
    assert undeclared(["DE", "XX"]) == ""
    assert undeclared(["AU", "DE", "NL"]).startswith(
        "no profile of AU, NL in market/profiles.py: languages, time zone"
    )


def test_every_country_has_a_profile_that_can_be_used():
    assert len(cldr.COUNTRIES) == len(set(cldr.COUNTRIES)) > 240
    assert set(cldr.COUNTRIES) <= set(holidays.list_supported_countries())
    for code in cldr.COUNTRIES:
        market = profile(code)
        assert (market.code, market.country) == (code, code)
        assert market.name
        assert market.region in REGIONS
        assert market.region != WORLD.region
        assert market.languages
        assert 1 <= len(market.weekend) <= 2
        assert ZoneInfo(market.timezone)


def test_what_is_known_of_countries_is_what_the_sources_say():
    assert COUNTRIES_FILE.read_text("utf-8") == cldr.countries()


@pytest.mark.parametrize("market", [m for m in MARKETS.values() if m is not WORLD], ids=lambda m: m.code)
def test_a_declared_profile_is_of_the_region_language_and_clock_that_the_sources_name(market: Market):
    rows = {row["code"]: row for row in csv.DictReader(cldr.countries().splitlines())}
    known = rows[market.code]
    assert (market.region, market.timezone) == (known["region"], known["timezone"])
    assert market.languages[0] in known["languages"].split()
    assert set(known["languages"].split()) <= set(market.languages)


@pytest.mark.parametrize("code", ["uk", "id", "", "QQ"])
def test_an_unknown_code_is_named_beside_the_known_ones(code):
    with pytest.raises(UnknownMarket, match=f"no market '{code}'; known are ID, TH") as caught:
        profile(code)
    assert isinstance(caught.value, ValueError)


def test_profiles_and_calendar_need_no_training_library():
    check = (
        "import sys; import market.calendar, market.profiles; "
        "print([m for m in ('pandas', 'pyarrow', 'tensorflow', 'dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
