"""The kinds of contents. Who stores a kind as a number stores its place here."""

KINDS = ("video", "live", "product")
