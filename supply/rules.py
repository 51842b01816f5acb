"""Rules of markets that operations declare: what may not be shown there, and in which languages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from market.kinds import KINDS
from market.languages import base
from market.profiles import KNOWN, is_market, profile

EVERYWHERE = "*"
LANGUAGES = ("any", "spoken")
_NAMED = 10
"""Names that a message spells out."""
_COMPARED = 1000
"""Names of contents up to which a name is compared with all of them, letter by letter."""


class RuleError(ValueError):
    """A rule that cannot be obeyed; the text names it and what is allowed."""


@dataclass(frozen=True)
class Rules:
    """Rules by market; "*" stands for every market, and adds to what a market has of its own.

    Attributes:
        forbidden_categories: categories that may not be shown, by market or "*".
        forbidden_kinds: of video, live and product, those that may not be shown, by market or "*".
        forbidden_sellers: sellers whose contents may not be shown, by market or "*".
        languages: "any", or "spoken" where contents must be in a language of the market's profile or in none,
            by market or "*" for those without a rule of their own.
    """

    forbidden_categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forbidden_kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forbidden_sellers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("forbidden_categories", "forbidden_kinds", "forbidden_sellers", "languages"):
            for code, said in getattr(self, name).items():
                if not is_market(code) and code != EVERYWHERE:
                    raise RuleError(
                        f"rules.{name} names market {code!r}; use {EVERYWHERE!r} or one of {KNOWN}"
                    )
                if name != "languages" and isinstance(said, str):
                    raise RuleError(f"rules.{name}.{code} is {said!r}; write a list, [{said!r}]")
        for code, kinds in self.forbidden_kinds.items():
            for kind in kinds:
                if kind not in KINDS:
                    raise RuleError(
                        f"rules.forbidden_kinds.{code} has {kind!r}; there are {', '.join(KINDS)}"
                    )
        for code, said in self.languages.items():
            if said not in LANGUAGES:
                raise RuleError(f"rules.languages.{code} is {said!r}; use one of {', '.join(LANGUAGES)}")

    def allow(
        self,
        markets: Iterable[str],
        *,
        kind: np.ndarray,
        category: np.ndarray,
        seller: np.ndarray,
        language: np.ndarray,
    ) -> np.ndarray:
        """Which contents each market's rules allow, bool[M, N].

        Args:
            markets: codes.
            kind, category, seller, language: text[N], "" where unknown.
        """
        codes = list(markets)
        allowed = np.ones((len(codes), len(kind)), bool)
        # Names are read once, not once a market: a server starts with this, and has a deadline.
        rules = [
            (forbidden, *_distinct(values))
            for forbidden, values in (
                (self.forbidden_categories, category),
                (self.forbidden_kinds, kind),
                (self.forbidden_sellers, seller),
            )
            if forbidden
        ]
        languages, of_language = _distinct(language if "spoken" in self.languages.values() else language[:0])
        for code, row in zip(codes, allowed):
            for forbidden, names, which in rules:
                if barred := {*forbidden.get(EVERYWHERE, ()), *forbidden.get(code, ())}:
                    row &= np.array([name not in barred for name in names], bool)[which]
            if self.languages.get(code, self.languages.get(EVERYWHERE, "any")) == "spoken":
                known = {"", *map(base, profile(code).languages)}
                row &= np.array([base(name) in known for name in languages], bool)[of_language]
        return allowed

    def without_effect(self, *, category: Iterable[str], seller: Iterable[str]) -> list[str]:
        """What is forbidden by a name that no content has: a text for each such rule, with the names meant.

        Args:
            category, seller: those of all contents.
        """
        texts = []
        for name, forbidden, known in (
            ("forbidden_categories", self.forbidden_categories, set(category) - {""}),
            ("forbidden_sellers", self.forbidden_sellers, set(seller) - {""}),
        ):
            folded = {one.strip().casefold(): one for one in sorted(known)} if forbidden else {}
            for code, said in forbidden.items():
                if lost := sorted(set(said) - known):
                    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
                    words = ", ".join(_with_near(one, folded) for one in lost[:_NAMED])
                    texts.append(
                        f"rules.{name}.{code} forbids what no content of the release has: {words}{more}; "
                        "correct the name, or leave it for a release that has it"
                    )
        return texts


def _distinct(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The distinct ones of texts [N], and which of them each is, int64[N]; sorting them would take longer."""
    places: dict[str, int] = {}
    which = np.fromiter((places.setdefault(text, len(places)) for text in values.tolist()), np.int64)
    return list(places), which


def _with_near(name: str, folded: Mapping[str, str]) -> str:
    """A name, and what contents have that is most like it; `folded` are theirs by their lower case."""
    own = name.strip().casefold()
    near = [own] if own in folded else []
    if not near and len(folded) <= _COMPARED:
        near = difflib.get_close_matches(own, folded, 1)
    return f"{name!r} (did you mean {folded[near[0]]!r}?)" if near else repr(name)
