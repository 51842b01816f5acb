"""What may be logged of an exposure. Names alone, for those who serve know no table library."""

POSITIVE_OUTCOMES = ("click", "like", "follow", "comment", "share", "long_view", "cart", "order")
"""Outcomes that say a person wanted the content; any of them makes an impression a positive."""
FLAGS = (*POSITIVE_OUTCOMES, "refund", "negative")
"""Outcomes that happened or did not: 0 or 1."""
OUTCOMES = ("watch_s", *FLAGS, "value", "rating")
"""What may be logged after an exposure; none of them is ever a feature of the same exposure."""
