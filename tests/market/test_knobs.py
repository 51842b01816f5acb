"""Knobs out of range are refused by name, infinities and what is no number too."""

from dataclasses import dataclass

import pytest

from market.knobs import expect


@dataclass(frozen=True)
class Config:
    share: float = 0.5
    widths: tuple[int, ...] = (4, 2)


@pytest.mark.parametrize(
    ("config", "bounds", "said"),
    [
        (Config(), {"least": 0.5, "most": 4}, None),
        (Config(), {"above": 0.5}, "toy.share is 0.5; it must be above 0.5"),
        (Config(share=0.0), {"above": 0, "most": 9}, "toy.share is 0.0; it must be above 0 and at most 9"),
        (Config(share=-1), {"least": 0, "most": 65_535}, "toy.share is -1; it must be from 0 to 65,535"),
        (Config(widths=(4, 0)), {"least": 0.5}, r"toy.widths is \(4, 0\); it must be at least 0.5"),
        (Config(share=float("nan")), {"least": 0}, "toy.share is nan; it must be at least 0"),
        (Config(share=float("inf")), {}, "toy.share is inf; it must be finite"),
    ],
)
def test_a_range_is_kept_or_said(config, bounds, said):
    if said is None:
        expect(config, "toy", "share widths", **bounds)
        return
    with pytest.raises(ValueError, match=f"^{said}$"):
        expect(config, "toy", "share widths", **bounds)
