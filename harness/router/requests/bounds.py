"""The error of a request beyond a bound, and the parts of a request that only some builds know."""

from dataclasses import dataclass
from typing import Any


class BoundError(ValueError):
    """A request is beyond a bound.

    Args:
        path: the field, from the request's root.
        expected: what is allowed, for the client.
    """

    def __init__(self, path: str, expected: str) -> None:
        super().__init__(f"{path}: {expected}")
        self.path = path
        self.expected = expected


@dataclass(frozen=True)
class Conditional:
    """A part of a request that only later builds of llama-server know."""

    container: dict[str, Any]
    key: str
    path: str
    since: int
    """The first build that knows it."""
