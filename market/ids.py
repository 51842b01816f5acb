"""What an identifier may be, in tables, requests and logs."""

LONGEST_ID = 256
"""Characters of an id. A release holds ids at one width, so each takes the room of the longest."""


def is_id(text: str) -> bool:
    """Whether a text may name a user, a content or a seller: arrays of text would cut a NUL at the end."""
    return 0 < len(text) <= LONGEST_ID and "\0" not in text
