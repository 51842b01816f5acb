"""What the tables in `market/cldr/` hold, worked out anew: CLDR by Babel, zones by the IANA's table in pytz.

    python -m tests.market.cldr

writes them. Babel reads its data by pickle, which nothing does that serves, so what it knows is kept as text.
"""

from __future__ import annotations

import csv
import datetime
import io
from zoneinfo import ZoneInfo

import pytz
from babel import Locale, UnknownLocaleError
from babel.core import get_global
from babel.languages import get_official_languages

from market.languages import ALIASES_FILE
from market.profiles import COUNTRIES_FILE

# The United Nations' M49, its subregions joined where feeds hardly differ: the Americas but the United States
# and Canada are Latin America, Cyprus is Europe.
REGIONS = {
    "europe": """AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT
        LU LV MC MD ME MK MT NL NO PL PT RO RS RU SE SI SJ SK SM UA VA XK""",
    "south-east-asia": "BN ID KH LA MM MY PH SG TH TL VN",
    "latin-america": """AG AI AR AW BB BL BO BQ BR BS BZ CL CO CR CU CW DM DO EC FK GD GF GP GS GT GY HN HT JM
        KN KY LC MF MQ MS MX NI PA PE PR PY SR SV SX TC TT UY VC VE VG VI""",
    "north-america": "BM CA GL PM US",
    "east-asia": "CN HK JP KP KR MN MO TW",
    "south-asia": "AF BD BT IN IR LK MV NP PK",
    "central-asia": "KG KZ TJ TM UZ",
    "west-asia": "AE AM AZ BH GE IL IQ JO KW LB OM PS QA SA SY TR YE",
    "north-africa": "DZ EG EH LY MA SD TN",
    "africa": """AO BF BI BJ BW CD CF CG CI CM CV DJ ER ET GA GH GM GN GQ GW IO KE KM LR LS MG ML MR MU MW MZ
        NA NE NG RE RW SC SH SL SN SO SS ST SZ TD TG TZ UG YT ZA ZM ZW""",
    "oceania": "AS AU CC CK CX FJ FM GU KI MH MP NC NF NR NU NZ PF PG PN PW SB TK TO TV UM VU WF WS",
}
COUNTRIES = sorted(code for codes in REGIONS.values() for code in codes.split())
# Of countries whose clocks differ, the zone most people live in; and of one that ISO does not list.
ZONES = {
    "AU": "Australia/Sydney",
    "BR": "America/Sao_Paulo",
    "CA": "America/Toronto",
    "CD": "Africa/Kinshasa",
    "CL": "America/Santiago",
    "CN": "Asia/Shanghai",
    "EC": "America/Guayaquil",
    "ES": "Europe/Madrid",
    "FM": "Pacific/Chuuk",
    "GL": "America/Nuuk",
    "ID": "Asia/Jakarta",
    "KI": "Pacific/Tarawa",
    "MN": "Asia/Ulaanbaatar",
    "MX": "America/Mexico_City",
    "NZ": "Pacific/Auckland",
    "PF": "Pacific/Tahiti",
    "PG": "Pacific/Port_Moresby",
    "PT": "Europe/Lisbon",
    "RU": "Europe/Moscow",
    "UA": "Europe/Kyiv",
    "UM": "Pacific/Wake",
    "US": "America/New_York",
    "XK": "Europe/Belgrade",
}
SATURDAY_SUNDAY = (5, 6)


def countries() -> str:
    """The text of `market/cldr/countries.csv`."""
    region = {code: name for name, codes in REGIONS.items() for code in codes.split()}
    names = Locale("en").territories
    rows = []
    for code in COUNTRIES:
        spoken = get_official_languages(code, de_facto=True)
        languages = " ".join(dict.fromkeys(language.split("_")[0] for language in spoken))
        weekend = " ".join(map(str, _weekend(code)))
        rows.append((code, names[code], region[code], languages, _zone(code), weekend))
    return _csv(("code", "name", "region", "languages", "timezone", "weekend"), rows)


def aliases() -> str:
    """The text of `market/cldr/language_aliases.csv`: codes of languages and what is preferred to them."""
    known = get_global("language_aliases").items()
    rows = [(alias, language) for alias, language in sorted(known) if alias.isalpha() and language.isalpha()]
    return _csv(("alias", "language"), rows)


def _csv(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _zone(code: str) -> str:
    zones = pytz.country_timezones.get(code, ())
    if code in ZONES:
        return ZONES[code]
    year = [datetime.datetime(2025, month, 15) for month in range(1, 13)]
    clocks = {tuple(ZoneInfo(zone).utcoffset(day) for day in year) for zone in zones}
    if len(clocks) != 1:
        raise ValueError(f"clocks of {code} differ ({', '.join(zones)}); add most people's to ZONES")
    return zones[0]


def _weekend(code: str) -> tuple[int, ...]:
    try:
        locale = Locale.parse(f"und_{code}")
    except UnknownLocaleError:
        return SATURDAY_SUNDAY
    return tuple(range(locale.weekend_start, locale.weekend_end + 1))


if __name__ == "__main__":
    COUNTRIES_FILE.write_text(countries(), "utf-8")
    ALIASES_FILE.write_text(aliases(), "utf-8")
