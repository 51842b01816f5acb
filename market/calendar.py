"""What time and what kind of day it is where each person is: local hour, weekend, holiday, pay-day, campaign.

Runs on whole batches while a request is served: numpy, zoneinfo and `holidays` alone, with the facts of each
(market, local day) worked out once and kept.
"""

import calendar
import datetime
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import holidays
import numpy as np
from numpy.typing import NDArray

from market.profiles import Market, ShoppingDay, profile

PAYDAY_WINDOW_DAYS = 3
"""A pay-day and the days after it that belong to its window."""
NO_PAYDAY = 31.0
"""`days_to_payday` of a market without declared pay-days: as far away as one can be."""

_DAY_S = 86_400
# Clocks change on a quarter of an hour in every zone that has a profile, so an offset holds for a quarter.
_OFFSET_STEP_S = 900
_YEAR_2100 = 4_102_444_800
_EPOCH = datetime.date(1970, 1, 1)
_EPOCH_WEEKDAY = 3  # a Thursday


@dataclass(frozen=True)
class CalendarContext:
    """The local calendar of a batch; every array is [B], and the flags are int64 0 or 1."""

    hour: NDArray[np.int64]
    """0 … 23."""
    weekday: NDArray[np.int64]
    """Monday 0 … Sunday 6."""
    is_weekend: NDArray[np.int64]
    is_holiday: NDArray[np.int64]
    """Public and religious holidays of the whole country."""
    is_payday_window: NDArray[np.int64]
    """A pay-day or one of the days after it, `PAYDAY_WINDOW_DAYS` in all."""
    is_shopping_day: NDArray[np.int64]
    days_to_payday: NDArray[np.float32]
    """Days until the next pay-day, 0 on the day; `NO_PAYDAY` where none is declared."""


class _Day(NamedTuple):
    holiday: bool
    payday_window: bool
    shopping_day: bool
    days_to_payday: float


def local_context(markets: NDArray[np.str_], times: NDArray[np.int64]) -> CalendarContext:
    """The local calendar at `times` (int64 [B], s since 1970 UTC) in `markets` (codes [B]).

    Raises `UnknownMarket` for a code without a profile, ValueError for arrays that do not match.
    """
    markets, times = np.asarray(markets), np.asarray(times)
    if markets.ndim != 1 or markets.shape != times.shape or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(
            f"markets and times must be [B], times in whole seconds; got {markets.dtype} {markets.shape} "
            f"and {times.dtype} {times.shape}."
        )
    if times.size and not 0 <= times.min() <= times.max() < _YEAR_2100:
        raise ValueError(
            f"times must be seconds since 1970 in UTC, before 2100; got {times.min()} to {times.max()}. "
            "Divide milliseconds by 1,000."
        )
    codes, market = np.unique(markets.astype(str), return_inverse=True)
    profiles = [profile(code) for code in codes]
    local = times.astype(np.int64) + _offsets(profiles, market, times)
    day, second = np.divmod(local, _DAY_S)
    weekday = (day + _EPOCH_WEEKDAY) % 7

    first, back = _distinct_pairs(market, day)
    known = [_day(profiles[market[i]].code, int(day[i])) for i in first]
    flags = np.array([row[:3] for row in known], np.int64).reshape(-1, 3)[back]
    weekend = np.zeros((len(profiles), 7), np.int64)
    for row, place in zip(weekend, profiles):
        row[list(place.weekend)] = 1
    return CalendarContext(
        hour=second // 3600,
        weekday=weekday,
        is_weekend=weekend[market, weekday],
        is_holiday=flags[:, 0],
        is_payday_window=flags[:, 1],
        is_shopping_day=flags[:, 2],
        days_to_payday=np.array([row.days_to_payday for row in known], np.float32)[back],
    )


def shopping_dates(market: Market, year: int) -> frozenset[datetime.date]:
    """The days of `year` on which a campaign of the market runs."""
    starts = [
        (_start(campaign, y), campaign.days) for campaign in market.shopping_days for y in (year - 1, year)
    ]
    dates = (start + datetime.timedelta(ahead) for start, days in starts for ahead in range(days))
    return frozenset(date for date in dates if date.year == year)


def _offsets(
    profiles: list[Market], market: NDArray[np.int64], times: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Seconds east of UTC of each row [B]."""
    quarter = times // _OFFSET_STEP_S
    first, back = _distinct_pairs(market, quarter)
    known = [_offset(profiles[market[i]].timezone, int(quarter[i])) for i in first]
    return np.array(known, np.int64)[back]


def _distinct_pairs(
    group: NDArray[np.int64], value: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A row [D] of each distinct (group, value), and for each row the number of its pair [B]."""
    low = value.min(initial=0)
    pair = group * (value.max(initial=0) - low + 1) + (value - low)
    _, first, back = np.unique(pair, return_index=True, return_inverse=True)
    return first, back


@lru_cache(maxsize=1 << 16)
def _offset(timezone: str, quarter: int) -> int:
    moment = datetime.datetime.fromtimestamp(quarter * _OFFSET_STEP_S, ZoneInfo(timezone))
    offset = moment.utcoffset()
    assert offset is not None  # an aware datetime has one
    return int(offset.total_seconds())


@lru_cache(maxsize=1 << 16)
def _day(code: str, local_day: int) -> _Day:
    market = profile(code)
    date = _EPOCH + datetime.timedelta(local_day)
    return _Day(
        holiday=date in _holidays(market.country, date.year),
        payday_window=any(
            _is_payday(market, date - datetime.timedelta(back)) for back in range(PAYDAY_WINDOW_DAYS)
        ),
        shopping_day=date in _shopping_dates(code, date.year),
        days_to_payday=next(
            (float(k) for k in range(32) if _is_payday(market, date + datetime.timedelta(k))), NO_PAYDAY
        ),
    )


@lru_cache(maxsize=1024)
def _holidays(country: str, year: int) -> frozenset[datetime.date]:
    return frozenset(holidays.country_holidays(country, years=year)) if country else frozenset()


@lru_cache(maxsize=1024)
def _shopping_dates(code: str, year: int) -> frozenset[datetime.date]:
    return shopping_dates(profile(code), year)


def _is_payday(market: Market, date: datetime.date) -> bool:
    last = calendar.monthrange(date.year, date.month)[1]
    return any(date.day == min(day, last) for day in market.pay_days)


def _start(campaign: ShoppingDay, year: int) -> datetime.date:
    date = datetime.date(year, campaign.month, campaign.day)
    if campaign.weekday is None:
        return date
    return date + datetime.timedelta((campaign.weekday - date.weekday()) % 7)
