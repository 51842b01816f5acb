"""What the outcomes of showing a content are worth: probabilities in, one value in US dollars out."""

from __future__ import annotations

import numpy as np

from ensemble.plan import PRICED, Plan
from ensemble.release import Release
from market.kinds import KINDS


def kinds_sold(available: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Whether each market sells any content of each of `KINDS`, bool[M, 3].

    Args:
        available: bool[M, N], where contents are sold.
        kind: int[N], codes.
    """
    return np.stack([available[:, kind == code].any(axis=1) for code in range(len(KINDS))], axis=1)


def sold_by(release: Release) -> np.ndarray:
    """`kinds_sold` of a release."""
    return kinds_sold(release.array("available.npy"), release.array("kind_code.npy"))


def without_effect(release: Release) -> list[str]:
    """Weights of a release for what it does not have, in words; see `CascadeConfig.without_effect`."""
    plan = Plan.of(release)
    return plan.config.without_effect(plan.tasks, plan.markets, sold_by(release))


class Blend:
    """The one place where outcomes become a value.

    Weights are declared by market and kind (`CascadeConfig.weights`, `weights_for`). A cart and an order are
    worth a part of the content's price, every other outcome an amount.

    Raises:
        ValueError: all contents of a market are worth nothing under the release's weights.
    """

    def __init__(self, release: Release) -> None:
        plan = Plan.of(release)
        self.kind = release.array("kind_code.npy")
        plan.config.expect_worth(plan.tasks, plan.markets, sold_by(release))
        price = release.array("price_usd.npy")
        self.price = np.where(np.isnan(price), np.float32(plan.config.price_usd), price)
        worth = np.array(
            [
                [[plan.config.weight(task, market, kind) for task in plan.tasks] for kind in KINDS]
                for market in plan.markets
            ],
            np.float32,
        )
        priced = np.isin(plan.tasks, PRICED)
        #: float32[M, 3, T], by market and kind: US dollars, and parts of the price.
        self.amounts, self.parts = np.where(priced, 0, worth), np.where(priced, worth, 0)

    def __call__(
        self, probabilities: np.ndarray, candidates: np.ndarray, market_index: np.ndarray
    ) -> np.ndarray:
        """Expected value of showing each candidate (USD).

        Args:
            probabilities: float32[B, C, T], of the ranker.
            candidates: int64[B, C], rows of the contents table; what -1 is worth means nothing.
            market_index: int64[B].

        Returns:
            float32[B, C]
        """
        kind, market = self.kind[candidates], market_index[:, None]
        amount = (probabilities * self.amounts[market, kind]).sum(axis=-1)
        return amount + self.price[candidates] * (probabilities * self.parts[market, kind]).sum(axis=-1)
