"""What operations say apart from a release: rules of markets, and the state that changes by the second."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ensemble.lookup import IdIndex
from ensemble.plan import Plan
from ensemble.release import Release
from supply.eligibility import Eligibility
from supply.live import LiveState
from supply.rules import Rules


@dataclass(frozen=True)
class Steering:
    """Attributes:
    rules: of markets.
    state: folder of the live state; None where there is none.
    """

    rules: Rules = field(default_factory=Rules)
    state: Path | None = None


NOTHING = Steering()


def without_effect(release: Release, rules: Rules) -> list[str]:
    """What rules forbid that no content of a release has, in words; see `Rules.without_effect`."""
    return rules.without_effect(
        category=release.array("text_category.npy").tolist(), seller=release.array("seller_ids.npy").tolist()
    )


def eligibility(release: Release, steering: Steering) -> Eligibility:
    """The hard rules for a release's contents, under what operations say."""
    sellers, code = release.array("text_seller_id.npy"), release.array("seller_code.npy")
    contents = release.array("text_content_id.npy")
    live = None
    if steering.state is not None:
        seller_ids = release.array("seller_ids.npy")
        live = LiveState(
            steering.state,
            contents=IdIndex(contents),
            sellers=IdIndex(seller_ids),
            content_count=len(contents),
            seller_count=len(seller_ids),
        )
    allowed = steering.rules.allow(
        Plan.of(release).markets,
        kind=release.array("text_kind.npy"),
        category=release.array("text_category.npy"),
        seller=sellers,
        language=release.array("text_content_language.npy"),
    )
    return Eligibility(
        release.array("available.npy") & allowed,
        release.array("created_at.npy"),
        release.array("ended_at.npy"),
        stock=release.array("stock.npy"),
        seller=code,
        live=live,
    )
