"""Rules of markets say what may not be shown where, and a wrong one is refused when it is read."""

import time

import numpy as np
import pytest

from market.profiles import MARKETS
from supply.rules import RuleError, Rules

CONTENTS = {
    "kind": np.array(["video", "live", "product", "video"]),
    "category": np.array(["books", "alcohol", "", "toys"]),
    "seller": np.array(["s1", "s2", "s3", ""]),
    "language": np.array(["en", "id", "", "pt-BR"]),
}


def allowed(**rules):
    return Rules(**rules).allow(("ID", "BR", "GB"), **CONTENTS).tolist()


def test_without_rules_everything_may_be_shown():
    assert Rules().allow(("ID", "GB"), **CONTENTS).all()


def test_a_rule_holds_in_its_market_and_a_star_everywhere():
    made = allowed(
        forbidden_categories={"ID": ("alcohol", "never heard of"), "*": ("toys",)},
        forbidden_kinds={"BR": ("product",)},
        forbidden_sellers={"GB": ("s1",)},
    )
    assert made == [
        [True, False, True, False],
        [True, True, False, False],
        [False, True, True, False],
    ]


def test_rules_of_many_markets_take_about_as_long_as_those_of_one():
    contents = {name: np.resize(values, 40_000) for name, values in CONTENTS.items()}
    rules = Rules({"*": ("alcohol", "toys")}, {"*": ("live",)}, {"*": ("s1",)}, {"*": "spoken"})

    def seconds(markets):
        begin = time.perf_counter()
        assert rules.allow(markets, **contents).shape == (len(markets), 40_000)
        return time.perf_counter() - begin

    one, many = (min(seconds(markets) for _ in range(3)) for markets in (["ID"], [*MARKETS] * 3))
    assert many < 15 * one, "of 57 markets"


def test_contents_are_in_a_language_of_the_market_where_that_is_asked_for():
    assert allowed(languages={"*": "spoken", "GB": "any"}) == [
        [True, True, True, False],  # Indonesia's profile has English as a fall-back
        [True, False, True, True],
        [True, True, True, True],
    ]


def test_other_codes_of_a_spoken_language_are_spoken():
    said = np.array(["tl", "IN", "", "pt"])
    rules = Rules(languages={"*": "spoken"})
    assert rules.allow(("PH", "ID"), **CONTENTS | {"language": said}).tolist() == [
        [True, False, True, False],
        [False, True, True, False],
    ]


def test_a_country_without_a_declared_profile_speaks_its_own_languages_and_english():
    said = np.array(["nl", "fr", "nld-BE", "en"])
    assert Rules(languages={"*": "spoken"}).allow(("NL", "BE"), **CONTENTS | {"language": said}).tolist() == [
        [True, False, True, True],
        [True, True, True, True],
    ]


def test_what_is_forbidden_by_a_name_that_no_content_has_is_told_with_the_one_meant():
    rules = Rules(
        forbidden_categories={"GB": ("Alcohol", "books"), "*": ("weapons", "toy"), "ID": ("toys",)},
        forbidden_sellers={"BR": (" S1", *(f"gone-{number:02}" for number in range(12)))},
    )
    made = rules.without_effect(category=CONTENTS["category"].tolist(), seller=CONTENTS["seller"].tolist())
    advice = "; correct the name, or leave it for a release that has it"
    gone = ", ".join(f"'gone-{number:02}'" for number in range(9))
    assert made == [
        "rules.forbidden_categories.GB forbids what no content of the release has: 'Alcohol' (did you mean "
        f"'alcohol'?){advice}",
        "rules.forbidden_categories.* forbids what no content of the release has: 'toy' (did you mean "
        f"'toys'?), 'weapons'{advice}",
        "rules.forbidden_sellers.BR forbids what no content of the release has: ' S1' (did you mean 's1'?), "
        f"{gone} and 3 more{advice}",
    ]
    assert Rules().without_effect(category=["books"], seller=[""]) == []
    assert Rules(forbidden_categories={"NL": ("toys",)}).without_effect(category=["toys"], seller=[""]) == []


def test_among_many_names_only_another_case_is_taken_for_the_one_meant():
    many = [f"s{number:05}" for number in range(1001)]
    rules = Rules(forbidden_sellers={"*": ("S00001", "s0001")})
    (made,) = rules.without_effect(category=[], seller=many)
    assert "'S00001' (did you mean 's00001'?), 's0001';" in made
    (made,) = rules.without_effect(category=[], seller=many[1:])
    assert "'s0001' (did you mean" in made


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"forbidden_categories": {"UK": ("toys",)}}, "names market 'UK'; use '\\*' or one of"),
        ({"forbidden_categories": {"GB": "toys"}}, r"write a list, \['toys'\]"),
        ({"forbidden_kinds": {"GB": ("rooms",)}}, "has 'rooms'; there are video, live, product"),
        ({"languages": {"*": "local"}}, "is 'local'; use one of any, spoken"),
    ],
)
def test_a_rule_that_cannot_be_obeyed_is_refused_with_what_may_be_written(rules, text):
    with pytest.raises(RuleError, match=text):
        Rules(**rules)
