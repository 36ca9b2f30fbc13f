"""Seeded draws that are the same on every machine and in every Python version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def hashed(key: str) -> int:
    """Return a 64-bit number that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


class Dice:
    """Draw numbers and choices, one after another, from a named stream."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._num_draws = 0

    def below(self, bound: int) -> int:
        """Return a number from 0 to bound - 1."""
        self._num_draws += 1
        return hashed(f"{self._name}#{self._num_draws}") % bound

    def between(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, one_in: int) -> bool:
        """Return True once in so many draws."""
        return self.below(one_in) == 0

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in a drawn order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in items]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return so many different places of the sequence, in a drawn order."""
        return self.shuffled(items)[:count]
