"""What time and what kind of day it is where each person is: local hour, weekend, holiday, pay-day, campaign.

Runs on whole batches while a request is served: numpy, zoneinfo and `holidays` alone, with the facts of each
(market, quarter of an hour) worked out once and kept.
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
END_S = 4_102_444_800
"""Moments that a calendar can be asked about lie before this one, 2100 (s since the epoch)."""

# Clocks change, and hours begin, on a quarter of an hour in every zone of a market since 1972.
_QUARTER_S = 900


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


class _Quarter(NamedTuple):
    """As the fields of `CalendarContext`, in their order."""

    hour: int
    weekday: int
    weekend: bool
    holiday: bool
    payday_window: bool
    shopping_day: bool
    days_to_payday: float


def local_context(markets: NDArray[np.str_], times: NDArray[np.int64]) -> CalendarContext:
    """The local calendar at `times` (int64 [B], s since 1970 UTC) in `markets` (codes [B]).

    Raises `UnknownMarket` for a code of no country, ValueError for arrays that do not match.
    """
    markets, times = np.asarray(markets), np.asarray(times)
    if markets.ndim != 1 or markets.shape != times.shape or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(
            f"markets and times must be [B], times in whole seconds; got {markets.dtype} {markets.shape} "
            f"and {times.dtype} {times.shape}."
        )
    if times.size and not 0 <= times.min() <= times.max() < END_S:
        raise ValueError(
            f"times must be seconds since 1970 in UTC, before 2100; got {times.min()} to {times.max()}. "
            "Divide milliseconds by 1,000."
        )
    turn: dict[tuple[str, int], int] = {}
    pairs = zip(markets.astype(str).tolist(), (times.astype(np.int64) // _QUARTER_S).tolist())
    back = [turn.setdefault(pair, len(turn)) for pair in pairs]
    known = [_quarter(*pair) for pair in turn]
    facts = np.array(known, np.float64).reshape(-1, len(_Quarter._fields))[np.array(back, np.int64)]
    hour, weekday, *flags = facts[:, :-1].astype(np.int64).T
    weekend, holiday, payday_window, shopping_day = flags
    to_payday = facts[:, -1].astype(np.float32)
    return CalendarContext(hour, weekday, weekend, holiday, payday_window, shopping_day, to_payday)


def shopping_dates(market: Market, year: int) -> frozenset[datetime.date]:
    """The days of `year` on which a campaign of the market runs."""
    starts = [
        (_start(campaign, y), campaign.days) for campaign in market.shopping_days for y in (year - 1, year)
    ]
    dates = (start + datetime.timedelta(ahead) for start, days in starts for ahead in range(days))
    return frozenset(date for date in dates if date.year == year)


@lru_cache(maxsize=1 << 16)
def _quarter(code: str, quarter: int) -> _Quarter:
    market = profile(code)
    moment = datetime.datetime.fromtimestamp(quarter * _QUARTER_S, ZoneInfo(market.timezone))
    return _Quarter(
        moment.hour, moment.weekday(), moment.weekday() in market.weekend, *_day(code, moment.date())
    )


@lru_cache(maxsize=1 << 16)
def _day(code: str, date: datetime.date) -> _Day:
    market = profile(code)
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
