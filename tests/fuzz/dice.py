"""Decisions made of bytes: what a coverage-guided fuzzer changes a little, changes a little of what is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_ODD_NUMBERS: Final = (0, 1, 2, 255, 4096, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Dice:
    """Reads decisions from bytes; behind their end all of them are zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to decide."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1."""
        return self.byte() % limit

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def number(self) -> int:
        """A number of 64 bits, often small or a limit of something."""
        match self.below(4):
            case 0:
                return self.byte()
            case 1:
                return self.byte() << 8 | self.byte()
            case 2:
                return self.one_of(_ODD_NUMBERS)
            case _:
                self._at += 8
                return int.from_bytes(self._data[self._at - 8 : self._at], "little")
