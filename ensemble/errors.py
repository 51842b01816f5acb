"""Errors that a request can end with, each with the status its caller sees."""

from __future__ import annotations

from enum import Enum


class Code(str, Enum):
    """Status of a failed request; the names are gRPC's own."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class RequestError(Exception):
    """A request that cannot be answered.

    The message travels to the caller as it is. Say what was wrong, in which tensor and row, and what to send
    instead; never a path, a host or a stack trace, which belong in the server's log.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = Code(code)
        self.message = message


def invalid(message: str) -> RequestError:
    """The error of a request that its sender has to change."""
    return RequestError(Code.INVALID_ARGUMENT, message)
