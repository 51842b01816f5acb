"""What Pasar declares about a market: region, languages, money, clock, calendar, for operations to edit.

How people of a market behave is learned from data. A profile holds only what is agreed outside the data: the
languages that count, the currency, the time zone, the days on which people are paid and on which shops run
campaigns. Public and religious holidays come from the `holidays` library through `market.calendar`.

Any other country is a market, too: of that, what CLDR and the IANA know is taken, from `cldr/countries.csv`.

Rates are yearly averages of `RATES_YEAR`, from the World Bank series PA.NUS.FCRF (exchange rates) and
PA.NUS.PRVT.PP (purchasing power in private consumption). Update both together: their ratio is a price level.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from market.languages import canonical

Region = Literal[
    "europe",
    "south-east-asia",
    "latin-america",
    "north-america",
    "east-asia",
    "south-asia",
    "central-asia",
    "west-asia",
    "north-africa",
    "africa",
    "oceania",
    "world",
]
REGIONS: tuple[Region, ...] = get_args(Region)
"""Every region, the level between a market and the world at which sparse statistics are shared."""

RATES_YEAR = 2023
MONDAY, FRIDAY, SATURDAY, SUNDAY = 0, 4, 5, 6


class UnknownMarket(ValueError):
    """A market code that is no country's; the text names the code and the markets with a profile."""


@dataclass(frozen=True)
class ShoppingDay:
    """A yearly shopping campaign, `days` long.

    It starts on `month`/`day`, or, with a `weekday` (Monday 0 … Sunday 6), the first such weekday from that
    date on: Black Friday, the day after the fourth Thursday of November, is the first Friday from 23 Nov.
    """

    name: str
    month: int
    day: int
    weekday: int | None = None
    days: int = 1


@dataclass(frozen=True)
class Market:
    """The profile of one market."""

    code: str
    """Pasar's code of the market: the ISO 3166 alpha-2 code of its country, or "XX" for an unknown one."""
    name: str
    region: Region
    country: str
    """ISO 3166 alpha-2 code, as the `holidays` library takes it; empty where there is no one country."""
    languages: tuple[str, ...]
    """BCP 47 codes, the most used first; the later ones are the fall-backs."""
    currency: str
    """ISO 4217 code."""
    usd_per_unit: float
    """US dollars that one unit of the currency bought, average of `RATES_YEAR`."""
    purchasing_power: float
    """International dollars per unit: what a unit of the currency buys, at the prices of the US."""
    timezone: str
    """IANA time zone; of a country with several, the one most of its people live in."""
    weekend: tuple[int, ...] = (SATURDAY, SUNDAY)
    """Weekdays off work, Monday 0 … Sunday 6."""
    pay_days: tuple[int, ...] = ()
    """Days of the month on which wages usually arrive; 31 stands for the last day of any month."""
    shopping_days: tuple[ShoppingDay, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "languages", tuple(dict.fromkeys(map(canonical, self.languages))))


_SINGLES_DAY = ShoppingDay("11.11", 11, 11)
_BLACK_FRIDAY = ShoppingDay("Black Friday", 11, 23, FRIDAY)
_CYBER_MONDAY = ShoppingDay("Cyber Monday", 11, 26, MONDAY)
_BOXING_DAY = ShoppingDay("Boxing Day", 12, 26)
_VALENTINES = ShoppingDay("Valentine's Day", 2, 14)
_MOTHERS_DAY = ShoppingDay("Mother's Day", 5, 8, SUNDAY)

_SOUTH_EAST_ASIA = tuple(ShoppingDay(f"{month}.{month}", month, month) for month in range(1, 13))
_EUROPE = (_BLACK_FRIDAY, _CYBER_MONDAY, _SINGLES_DAY)
_NORTH_AMERICA = (_VALENTINES, _MOTHERS_DAY, _BLACK_FRIDAY, _CYBER_MONDAY, _BOXING_DAY)
_LATIN_AMERICA = (_BLACK_FRIDAY, _CYBER_MONDAY, _SINGLES_DAY)

_ALL = (
    # South-East Asia
    Market(
        "ID", "Indonesia", "south-east-asia", "ID", ("id", "jv", "su", "en"), "IDR", 1 / 15_237, 1 / 5_143.4,
        "Asia/Jakarta", pay_days=(25, 31),
        shopping_days=(*_SOUTH_EAST_ASIA, ShoppingDay("Harbolnas", 12, 10, days=3)),
    ),
    Market(
        "TH", "Thailand", "south-east-asia", "TH", ("th", "en"), "THB", 1 / 34.80, 1 / 11.184,
        "Asia/Bangkok", pay_days=(25, 31), shopping_days=_SOUTH_EAST_ASIA,
    ),
    Market(
        "VN", "Vietnam", "south-east-asia", "VN", ("vi", "en"), "VND", 1 / 23_787, 1 / 7_114.3,
        "Asia/Ho_Chi_Minh", pay_days=(5, 10, 31),
        shopping_days=(
            *_SOUTH_EAST_ASIA,
            ShoppingDay("International Women's Day", 3, 8),
            ShoppingDay("Vietnamese Women's Day", 10, 20),
            _BLACK_FRIDAY,
        ),
    ),
    Market(
        "MY", "Malaysia", "south-east-asia", "MY", ("ms", "en", "zh", "ta"), "MYR", 1 / 4.561, 1 / 1.4651,
        "Asia/Kuala_Lumpur", pay_days=(25, 28), shopping_days=_SOUTH_EAST_ASIA,
    ),
    Market(
        "PH", "Philippines", "south-east-asia", "PH", ("fil", "en", "ceb"), "PHP", 1 / 55.63, 1 / 20.691,
        "Asia/Manila", pay_days=(15, 30), shopping_days=_SOUTH_EAST_ASIA,
    ),
    Market(
        "SG", "Singapore", "south-east-asia", "SG", ("en", "zh", "ms", "ta"), "SGD", 1 / 1.343, 1 / 1.0475,
        "Asia/Singapore", pay_days=(25, 31), shopping_days=(*_SOUTH_EAST_ASIA, _BLACK_FRIDAY),
    ),
    # Europe
    Market(
        "GB", "United Kingdom", "europe", "GB", ("en",), "GBP", 1 / 0.804, 1 / 0.74757,
        "Europe/London", pay_days=(28, 31), shopping_days=(*_EUROPE, _BOXING_DAY),
    ),
    Market(
        "DE", "Germany", "europe", "DE", ("de", "en", "tr"), "EUR", 1 / 0.9248, 1 / 0.73496,
        "Europe/Berlin", pay_days=(15, 31), shopping_days=(*_EUROPE, _MOTHERS_DAY),
    ),
    Market(
        "FR", "France", "europe", "FR", ("fr", "en"), "EUR", 1 / 0.9248, 1 / 0.73777,
        "Europe/Paris", pay_days=(28, 31), shopping_days=_EUROPE,
    ),
    Market(
        "ES", "Spain", "europe", "ES", ("es", "ca", "gl", "eu", "en"), "EUR", 1 / 0.9248, 1 / 0.62226,
        "Europe/Madrid", pay_days=(28, 31), shopping_days=(*_EUROPE, ShoppingDay("Reyes", 1, 5)),
    ),
    Market(
        "IT", "Italy", "europe", "IT", ("it", "en"), "EUR", 1 / 0.9248, 1 / 0.66396,
        "Europe/Rome", pay_days=(10, 27), shopping_days=(*_EUROPE, _MOTHERS_DAY),
    ),
    # Latin America
    Market(
        "MX", "Mexico", "latin-america", "MX", ("es", "en"), "MXN", 1 / 17.76, 1 / 10.790,
        "America/Mexico_City", pay_days=(15, 31),
        shopping_days=(
            *_LATIN_AMERICA,
            ShoppingDay("Día de las Madres", 5, 10),
            # The long weekend of the third Monday of November.
            ShoppingDay("El Buen Fin", 11, 12, FRIDAY, days=4),
        ),
    ),
    Market(
        "BR", "Brazil", "latin-america", "BR", ("pt", "es", "en"), "BRL", 1 / 4.994, 1 / 2.4902,
        "America/Sao_Paulo", pay_days=(5, 20),
        shopping_days=(
            *_LATIN_AMERICA,
            ShoppingDay("Dia do Consumidor", 3, 15),
            _MOTHERS_DAY,
            ShoppingDay("Dia dos Namorados", 6, 12),
            ShoppingDay("Dia dos Pais", 8, 8, SUNDAY),
        ),
    ),
    Market(
        "CO", "Colombia", "latin-america", "CO", ("es", "en"), "COP", 1 / 4_326, 1 / 1_597.1,
        "America/Bogota", pay_days=(15, 30),
        shopping_days=(*_LATIN_AMERICA, _MOTHERS_DAY, ShoppingDay("Amor y Amistad", 9, 15, SATURDAY)),
    ),
    # Elsewhere
    Market(
        "CA", "Canada", "north-america", "CA", ("en", "fr"), "CAD", 1 / 1.350, 1 / 1.2239,
        "America/Toronto", pay_days=(15, 31), shopping_days=_NORTH_AMERICA,
    ),
    Market(
        "US", "United States", "north-america", "US", ("en", "es"), "USD", 1.0, 1.0,
        "America/New_York", pay_days=(15, 31), shopping_days=_NORTH_AMERICA,
    ),
    Market(
        "JP", "Japan", "east-asia", "JP", ("ja", "en"), "JPY", 1 / 140.5, 1 / 104.84,
        "Asia/Tokyo", pay_days=(25,),
        shopping_days=(
            ShoppingDay("Hatsu-uri", 1, 1, days=3),
            _VALENTINES,
            ShoppingDay("White Day", 3, 14),
            _SINGLES_DAY,
            _BLACK_FRIDAY,
        ),
    ),
    Market(
        "IN", "India", "south-asia", "IN",
        ("hi", "en", "bn", "mr", "te", "ta", "gu", "ur", "kn", "ml"), "INR", 1 / 82.60, 1 / 19.517,
        "Asia/Kolkata", pay_days=(1, 31),
        shopping_days=(ShoppingDay("Republic Day sale", 1, 26), ShoppingDay("Independence Day sale", 8, 15)),
    ),
)  # fmt: skip

WORLD = Market("XX", "Unknown market", "world", "", ("en",), "USD", 1.0, 1.0, "UTC")
"""For data sets of one market that do not say which: UTC, US dollars at par, no pay or shopping days."""

MARKETS: dict[str, Market] = {market.code: market for market in (*_ALL, WORLD)}
"""The markets with a declared profile, by code."""

COUNTRIES_FILE = Path(__file__).parent / "cldr" / "countries.csv"
"""Of every country its region (as the United Nations' M49 has it), its official languages, the most used
first, time zone and weekend; `tests/market/cldr.py` says where each comes from and writes it anew."""

KNOWN = f"{', '.join(MARKETS)} (upper case), or the ISO 3166 code of another country, such as NL"
"""The codes of markets, for messages."""


def is_market(code: object) -> bool:
    """Whether `profile` knows the code."""
    return isinstance(code, str) and (code in MARKETS or code in _countries())


@lru_cache(maxsize=1024)
def profile(code: str) -> Market:
    """The profile of the market `code`; of a country without a declared one what `COUNTRIES_FILE` says, with
    English as the last of its languages and the prices of the US.

    Raises `UnknownMarket` for a code that is no country's.
    """
    if code in MARKETS:
        return MARKETS[code]
    if code not in _countries():
        raise UnknownMarket(f"no market {code!r}; known are {KNOWN}.")
    country = _countries()[code]
    return Market(
        code,
        country["name"],
        country["region"],
        code,
        (*country["languages"].split(), *WORLD.languages),
        WORLD.currency,
        WORLD.usd_per_unit,
        WORLD.purchasing_power,
        country["timezone"],
        weekend=tuple(map(int, country["weekend"].split())),
    )


def undeclared(codes: Iterable[str]) -> str:
    """What to know of those of these markets that have no declared profile; empty where all have one."""
    without = [code for code in codes if code not in MARKETS]
    if not without:
        return ""
    return (
        f"no profile of {', '.join(without)} in market/profiles.py: languages, time zone, weekend and public "
        "holidays are the country's, but no pay or shopping days are known, and prices are taken to be those "
        "of the US"
    )


@lru_cache(maxsize=1)
def _countries() -> dict[str, Any]:
    with COUNTRIES_FILE.open(newline="", encoding="utf-8") as file:
        return {row["code"]: row for row in csv.DictReader(file)}
