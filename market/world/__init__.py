"""The simulated world: a market whose truth is known. Never imported by serving."""

from market.world.config import WorldConfig
from market.world.world import World

__all__ = ["World", "WorldConfig"]
