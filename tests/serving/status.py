"""The errors of the emulator: a canonical status code, how REST shows it, and a sentence."""

from __future__ import annotations

from typing import NoReturn

HTTP_STATUS: dict[str, int] = {  # the server's own table; whatever is not in it is 500
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class StatusError(Exception):
    """A request's failure; `code` is the canonical name, such as INVALID_ARGUMENT."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


def invalid(message: str) -> NoReturn:
    """Raises INVALID_ARGUMENT."""
    raise StatusError("INVALID_ARGUMENT", message)
