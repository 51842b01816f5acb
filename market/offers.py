"""What a content is to the people of a market before anybody there wanted it: its price and its language.

Numpy alone: a served request reads it. Nothing of it is learned from outcomes, so it holds in a market that
has no log yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from market.languages import base
from market.profiles import profile

#: Names of the columns that `Offers` returns, in order.
OFFER_FEATURES = ("price_local", "price_relative", "language_fit")
#: How well a content's language fits: that of the person, one of the market, none of them; unknown.
OWN, COMMON, FOREIGN, UNKNOWN = 1.0, 0.5, 0.0, 0.5
#: What is free, or nearly, is as dear as this (US dollars).
CENT = np.float32(0.01)


@dataclass(frozen=True)
class Offers:
    """Prices and languages of contents as each market sees them.

    Attributes:
        price_usd: float32[N], NaN where unknown.
        category: int[N], codes from 0 on, -1 where unknown.
        language: int[N], codes of languages, -1 where unknown.
        power: float32[M], international dollars that a US dollar buys in a market, at consumers' prices
            (`market.profiles`, which names the source).
        usual: float32[M, G + 1], median price (US dollars) of a category among the contents sold in a market;
            the last one is that of contents without a category. NaN where none has a price.
        fit: float32[M, L + 1, L + 1], how well a language (last axis) fits a person who speaks another (axis
            before); the last of each is the unknown one.
    """

    price_usd: np.ndarray
    category: np.ndarray
    language: np.ndarray
    power: np.ndarray
    usual: np.ndarray
    fit: np.ndarray

    @classmethod
    def of(
        cls,
        markets: Sequence[str],
        available: np.ndarray,
        *,
        price_usd: np.ndarray,
        category: np.ndarray,
        language: np.ndarray,
        languages: Sequence[str],
    ) -> Offers:
        """From the catalogue.

        Args:
            markets: codes of countries, or "XX"; any other raises `UnknownMarket`.
            available: bool[M, N], where a content is sold.
            languages: BCP 47 codes, in the order of `language`.
        """
        profiles = [profile(code) for code in markets]
        groups = int(category.max(initial=-1)) + 1
        usual = np.full((len(markets), groups + 1), np.nan, np.float32)
        for place, sold in enumerate(available):
            priced = np.flatnonzero(sold & ~np.isnan(price_usd))
            order = priced[np.argsort(category[priced], kind="stable")]
            codes, first = np.unique(category[order], return_index=True)
            for code, prices in zip(codes, np.split(price_usd[order], first[1:])):
                usual[place, code] = np.median(prices)  # code -1 is the last column
        fit = np.stack([language_fit(market.languages, languages) for market in profiles])
        power = np.array([market.purchasing_power / market.usd_per_unit for market in profiles], np.float32)
        return cls(price_usd, category, language, power, usual, fit)

    def __call__(
        self, market: np.ndarray, content: np.ndarray, speaks: np.ndarray, reads: np.ndarray | None = None
    ) -> np.ndarray:
        """Features of contents for people, scaled to about [-2, 3]; 0 where a price is unknown.

        Args:
            market: int64[...]; content: int64[...], rows; speaks: int64[...], codes of languages, -1 where
                unknown. They may have axes of length 1.
            reads: int64[..., K], other languages that are the persons' own as well, -1 fills.

        Returns:
            float32[..., 3], columns as in `OFFER_FEATURES`: price in international dollars and price over
            what is usual there, both as logarithms, and the fit of the language.
        """
        price = self.price_usd[content]
        usual = self.usual[market, self.category[content]]
        relative = np.log(np.maximum(price, CENT) / np.maximum(usual, CENT))
        fit = self.fit[market, speaks, self.language[content]]
        if reads is not None and reads.shape[-1]:
            own = np.where(reads >= 0, reads, speaks[..., None])
            fit = self.fit[market[..., None], own, self.language[content][..., None]].max(axis=-1)
        made = np.empty((*fit.shape, len(OFFER_FEATURES)), np.float32)
        made[..., 0] = np.log1p(price * self.power[market]) / 3
        made[..., 1] = np.minimum(np.maximum(relative, -2), 2)
        made[..., 2] = fit
        made[np.isnan(made)] = 0
        return made


def language_fit(spoken: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """How well languages (columns) fit people (rows) of a market, float32[L + 1, L + 1], unknown ones last.

    Dialects count as their language ("pt-BR" is "pt"). People of whom it is unknown speak the market's first.
    """
    stems, ours = [base(code) for code in languages], [base(code) for code in spoken]
    common = np.where(np.isin(stems, ours), COMMON, FOREIGN)
    made = np.full((len(stems) + 1, len(stems) + 1), UNKNOWN, np.float32)
    for row, own in enumerate([*stems, ours[0]]):
        made[row, :-1] = np.where(np.array(stems, object) == own, OWN, common)
    return made
