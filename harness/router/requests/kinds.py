"""Kinds of values that a field may have; ``str()`` of a kind is what an error and the docs say."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TOKEN_MOST = (1 << 31) - 1


class Kind(ABC):
    """One kind of values."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether a value is of this kind and within its bounds."""


@dataclass(frozen=True)
class Number(Kind):
    """A number from ``low`` to ``high``."""

    low: float
    high: float

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high
        )

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number from ``low`` to ``high``, also where it is written as 5.0."""

    low: int
    high: int

    def accepts(self, value: Any) -> bool:
        return is_whole(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Boolean(Kind):
    """``true`` or ``false``."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Kind):
    """A text of ``least`` to ``most`` characters; None: as long as the body."""

    most: int | None = None
    least: int = 0

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, str)
            and len(value) >= self.least
            and (self.most is None or len(value) <= self.most)
        )

    def __str__(self) -> str:
        words = "a text" if self.least == 0 else "a text that is not empty"
        return words if self.most is None else f"{words} of at most {self.most} characters"


@dataclass(frozen=True)
class OneOf(Kind):
    """One of a few values."""

    values: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in self.values)

    def __str__(self) -> str:
        return " or ".join(str(one).lower() if isinstance(one, bool) else str(one) for one in self.values)


@dataclass(frozen=True)
class ListOf(Kind):
    """A list of ``least`` to ``most`` items of one kind."""

    item: Kind
    most: int
    least: int = 0

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            return False
        return all(map(self.item.accepts, value))

    def __str__(self) -> str:
        return f"a list of {f'{self.least} to ' if self.least else 'at most '}{self.most}, each {self.item}"


@dataclass(frozen=True)
class Pair(Kind):
    """A list of two."""

    first: Kind
    second: Kind

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and self.first.accepts(value[0])
            and self.second.accepts(value[1])
        )

    def __str__(self) -> str:
        return f"[{self.first}, {self.second}]"


@dataclass(frozen=True)
class MapOf(Kind):
    """An object with at most ``most`` names, and values of one kind."""

    item: Kind
    most: int

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, dict) or len(value) > self.most:
            return False
        return all(len(name) <= 256 and self.item.accepts(item) for name, item in value.items())

    def __str__(self) -> str:
        return f"an object of at most {self.most} names, each {self.item}"


@dataclass(frozen=True)
class Object(Kind):
    """Any object."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, dict)

    def __str__(self) -> str:
        return "an object"


@dataclass(frozen=True)
class Anything(Kind):
    """Any value: it is checked elsewhere."""

    note: str

    def accepts(self, value: Any) -> bool:
        return True

    def __str__(self) -> str:
        return self.note


@dataclass(frozen=True)
class Either(Kind):
    """One of several kinds."""

    kinds: tuple[Kind, ...]

    def accepts(self, value: Any) -> bool:
        return any(kind.accepts(value) for kind in self.kinds)

    def __str__(self) -> str:
        return "; or ".join(map(str, self.kinds))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, also one that is written as 5.0."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def either(*kinds: Kind) -> Either:
    """One of several kinds."""
    return Either(kinds)


def one_of(values: Iterable[Any]) -> OneOf:
    """One of a few values."""
    return OneOf(tuple(values))
