"""What the numbers of a settings dataclass may be, asked in its `__post_init__`."""

from __future__ import annotations

import math
from typing import Any

#: Seeds that every generator the project uses takes.
LARGEST_SEED = 2**32 - 1


def expect(
    config: Any,
    section: str,
    names: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Refuse a knob that is no finite number of the range; of a tuple, any of its numbers.

    Args:
        config: the dataclass.
        section: what a message calls it, such as "ranker".
        names: attributes, separated by spaces.
        least, above, most: the range: least <= value <= most and value > above.

    Raises:
        ValueError: names the knob, what it is and what it must be.
    """
    for name in names.split():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple | list) else (value,):
            if not (math.isfinite(number) and least <= number <= most and number > above):
                allowed = _allowed(least, above, most)
                raise ValueError(f"{section}.{name} is {value}; it must be {allowed}")


def _allowed(least: float, above: float, most: float) -> str:
    if math.isfinite(least) and math.isfinite(most):
        return f"from {least:,} to {most:,}"
    parts = [
        f"{word} {bound:,}"
        for word, bound in (("at least", least), ("above", above), ("at most", most))
        if math.isfinite(bound)
    ]
    return " and ".join(parts) or "finite"
