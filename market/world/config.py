"""How large a simulated world is, where it lies and when it is logged."""

from dataclasses import dataclass
from datetime import datetime, timezone

from market.profiles import profile

DAY = 86_400
"""Seconds in a day."""
MOST_DAYS = 3_650
"""Days of a log: the latest that may start ends before 2100, where the calendar does."""


@dataclass(frozen=True)
class WorldConfig:
    """Size, place and time of a simulated world; equal configurations give equal worlds.

    Args:
        markets: codes known to `market.profiles`, at least one, each once.
        users, contents, sellers: how many of each, over all markets; at least one per market.
        impressions: length of the log. It is logged in whole slates: `impressions // slate` requests.
        days: length of the log in days, from `start` on.
        slate: contents shown per request.
        start: first day of the log, a UTC date (YYYY-MM-DD).
        taste_dim: dimensions of the latent taste space.
        images: whether contents have `v_image`, what an image encoder would say of them; the log is the same.
        seed: of everything drawn.

    Raises:
        ValueError: names the argument, what it got and what it allows.
    """

    markets: tuple[str, ...] = ("ID", "VN", "GB", "DE", "BR")
    users: int = 20_000
    contents: int = 12_000
    sellers: int = 600
    impressions: int = 400_000
    days: int = 14
    slate: int = 10
    start: str = "2026-03-02"
    taste_dim: int = 16
    images: bool = False
    seed: int = 7

    def __post_init__(self) -> None:
        if isinstance(self.markets, str) or not self.markets:
            raise ValueError(
                f"markets must be a tuple of market codes such as ('ID', 'GB'), got {self.markets!r}"
            )
        if len(set(self.markets)) != len(self.markets):
            raise ValueError(f"markets must name each market once, got {self.markets!r}")
        for code in self.markets:
            profile(code)
        least = {
            "users": len(self.markets),
            "contents": len(self.markets),
            "sellers": len(self.markets),
            "days": 1,
            "slate": 1,
            "taste_dim": 2,
            "seed": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
        if self.days > MOST_DAYS:
            raise ValueError(f"days must be at most {MOST_DAYS:,}, got {self.days!r}")
        if not isinstance(self.impressions, int) or self.impressions < self.slate:
            raise ValueError(
                f"impressions must be a whole number of at least one slate ({self.slate}), "
                f"got {self.impressions!r}"
            )
        try:
            year = datetime.strptime(self.start, "%Y-%m-%d").year
        except (TypeError, ValueError):
            raise ValueError(f"start must be a date such as '2026-03-02', got {self.start!r}") from None
        if not 2000 <= year < 2090:
            raise ValueError(f"start must lie between 2000 and 2089, got {self.start!r}")

    @property
    def begin(self) -> int:
        """First second of the log (s since epoch, UTC)."""
        return int(datetime.strptime(self.start, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp())

    @property
    def end(self) -> int:
        """First second after the log (s since epoch, UTC)."""
        return self.begin + self.days * DAY
