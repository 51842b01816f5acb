"""Codes of languages in one form, so that two of them which mean the same language are equal."""

import csv
import re
from functools import lru_cache
from pathlib import Path

_CODE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")

ALIASES_FILE = Path(__file__).parent / "cldr" / "language_aliases.csv"
"""Codes that CLDR prefers another one to: withdrawn ones, those of three letters where there is one of two,
and those of what is part of a macrolanguage."""
with ALIASES_FILE.open(newline="", encoding="utf-8") as _file:
    _PREFERRED = {row["alias"]: row["language"] for row in csv.DictReader(_file)}


def is_code(text: str) -> bool:
    """Whether `text` has the form of a BCP 47 code of a language, in any case."""
    return _CODE.fullmatch(text) is not None


@lru_cache(maxsize=1 << 16)
def canonical(code: str) -> str:
    """A BCP 47 code with the language that CLDR prefers, in the case of RFC 5646: "tl" is "fil", "pt-br" is
    "pt-BR", "zh-hant" is "zh-Hant"."""
    language, *subtags = code.lower().split("-")
    form = {2: str.upper, 4: str.capitalize}
    return "-".join(
        [_PREFERRED.get(language, language), *(form.get(len(tag), str.lower)(tag) for tag in subtags)]
    )


def base(code: str) -> str:
    """The language of a code alone: dialects and scripts count as their language ("pt-BR" is "pt")."""
    return canonical(code).split("-")[0]
