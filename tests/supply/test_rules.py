"""Rules of markets say what may not be shown where, and a wrong one is refused when it is read."""

import numpy as np
import pytest

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


def test_contents_are_in_a_language_of_the_market_where_that_is_asked_for():
    assert allowed(languages={"*": "spoken", "GB": "any"}) == [
        [True, True, True, False],  # Indonesia's profile has English as a fall-back
        [True, False, True, True],
        [True, True, True, True],
    ]


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
