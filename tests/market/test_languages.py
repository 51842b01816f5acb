"""Codes of languages that mean the same are one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.languages import ALIASES_FILE, base, canonical, is_code
from market.profiles import MARKETS, profile
from tests.market import cldr

CODES = st.from_regex(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}", fullmatch=True)


@pytest.mark.parametrize(
    ("code", "form"),
    [
        ("tl", "fil"),
        ("tl-PH", "fil-PH"),
        ("in", "id"),
        ("iw", "he"),
        ("ji", "yi"),
        ("jw", "jv"),
        ("EN", "en"),
        ("eng", "en"),
        ("cmn-hant-tw", "zh-Hant-TW"),
        ("nld", "nl"),
        ("dut-BE", "nl-BE"),
        ("pt-br", "pt-BR"),
        ("es-419", "es-419"),
        ("de-1996", "de-1996"),
        ("ca-VALENCIA", "ca-valencia"),
        ("ceb", "ceb"),
    ],
)
def test_a_code_has_one_form(code, form):
    assert canonical(code) == form


@given(CODES)
def test_the_form_of_a_form_is_itself_whatever_the_case(code):
    assert is_code(code)
    form = canonical(code)
    assert canonical(form) == canonical(code.swapcase()) == form
    assert is_code(form)
    assert base(code) == form.split("-")[0]


@pytest.mark.parametrize("text", ["", "e", "Indonesian", "pt_BR", "pt-", "en-x", " en"])
def test_what_is_no_code_is_none(text):
    assert not is_code(text)


def test_no_profile_has_a_language_that_another_code_is_preferred_to():
    for market in (*MARKETS.values(), *map(profile, cldr.COUNTRIES)):
        assert [canonical(code) for code in market.languages] == list(market.languages)


def test_the_preferred_codes_are_those_of_cldr():
    assert ALIASES_FILE.read_text("utf-8") == cldr.aliases()
