"""The pool of contents: which may be shown where and when, by rules, stock and what happens in live rooms."""
